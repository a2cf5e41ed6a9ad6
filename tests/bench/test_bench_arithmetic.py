"""What is computed from times and sizes, by hand; no test here knows how fast anything is."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path

import numpy as np
import pytest

from ddp_bp.bench import race as race_module
from ddp_bp.bench.exchange import OURS, contenders, ring_length
from ddp_bp.bench.machine import Copying, last_level_cache_bytes, minor_faults, proportional_set_bytes
from ddp_bp.bench.models import BenchModel
from ddp_bp.bench.race import median_ratio, race
from ddp_bp.bench.scaling import results
from ddp_bp.bench.training import best_ddp, num_parameters
from ddp_bp.bench.update import bytes_moved
from ddp_bp.engine.flat import FlatParameters
from ddp_bp.nn.models import mlp
from ddp_bp.parallel.threads import run_ranks

KIB, MIB = 2**10, 2**20


class Clock(threading.local):
    """A clock for each thread, which only goes on when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_contestants_take_turns_and_the_slowest_rank_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(race_module, "perf_counter", clock)

    def run(communicator):
        calls: list[tuple[str, int]] = []

        def contestant(name: str, seconds):
            def call(number: int) -> None:
                calls.append((name, number))
                clock.now += seconds(communicator.rank, number)

            return call

        contestants = {
            "a": contestant("a", lambda rank, number: 1 + rank + 10 * number),
            "b": contestant("b", lambda rank, number: 5 - rank),
        }
        return calls, race(communicator, contestants, num_repeats=3, num_warm_up=2)

    for calls, times in run_ranks(3, run):
        assert calls == [(name, number) for number in range(5) for name in "ab"]
        assert list(times) == ["a", "b"]
        # Those of calls 2, 3 and 4; rank 2 is the slowest in `a`, rank 0 in `b`.
        np.testing.assert_allclose(times["a"], [23, 33, 43])
        np.testing.assert_allclose(times["b"], [5, 5, 5])


def test_ratios_are_taken_turn_by_turn() -> None:
    # The ratio of the medians would be 2 / 4.
    assert median_ratio(np.array([1.0, 2.0, 30.0]), np.array([1.0, 4.0, 10.0])) == 1.0


def test_bus_bandwidth_is_that_of_nccl_tests() -> None:
    """Its documentation's factor for an all-reduce is 2 (n - 1) / n: 1.5 with 4 ranks."""
    times = {OURS: np.array([1e-3, 1e-3, 5e-3]), "MPI": np.array([2e-3, 4e-3, 3e-3])}
    ours, mpi = contenders(10**6, 4, times, copy_rate=12e9)
    assert (ours.name, ours.seconds, ours.ratio) == (OURS, 1e-3, 1.0)
    assert ours.bus_bytes_per_second == pytest.approx(1.5e9)
    assert ours.copy_share == pytest.approx(0.5)
    assert (mpi.name, mpi.seconds, mpi.ratio) == ("MPI", 3e-3, 0.5)
    assert mpi.bus_bytes_per_second == pytest.approx(0.5e9)
    assert contenders(10**6, 1, times, 1e9)[0].bus_bytes_per_second == 0


@pytest.mark.parametrize(
    ("member", "calls", "cache", "expected"),
    [
        (MIB, 100, 8 * MIB, 9),  # the eight others fill the cache before one has its turn again
        (3 * MIB, 100, 8 * MIB, 4),
        (100 * MIB, 100, 8 * MIB, 2),
        (KIB, 55, 8 * MIB, 55),  # never again: a call each
        (100 * MIB, 1, 8 * MIB, 1),
    ],
)
def test_rings_exceed_the_cache_or_have_a_member_for_every_call(
    member: int, calls: int, cache: int, expected: int
) -> None:
    length = ring_length(member, calls, cache)
    assert length == expected
    assert length == calls or (length - 1) * member >= cache


def test_reduce_and_adam_moves_eight_floats_a_parameter_on_two_ranks() -> None:
    # Two partials, p, m and v are read; p, m and v are written.
    assert bytes_moved(20_000_000, 2) == 8 * 4 * 20_000_000
    assert bytes_moved(1, 1) == 28


def test_the_best_bucket_is_the_one_with_the_smallest_median() -> None:
    times = {1: np.array([8.0, 1.0, 9.0]), 25: np.array([6.0, 6.0, 7.0]), 100: np.array([7.0, 7.0, 5.0])}
    best = best_ddp(times, np.array([2.0, 1.0, 7.0]), steps_per_block=4)
    assert (best.bucket_mb, best.seconds_per_step, best.speedup) == (25, 1.5, 3.0)


def test_efficiency_is_throughput_over_that_of_as_many_single_ranks() -> None:
    model = BenchModel((4, 3), batch_per_rank=10, steps_per_block=5)
    seconds = np.array([[1.0, 1.0, 2.0], [1.25, 2.0, 2.0]])
    one, two = results(model, seconds, [(100, 0.5), (150, 0.0)])
    assert (one.num_ranks, one.seconds_per_step, one.samples_per_second, one.efficiency) == (1, 0.2, 50.0, 1.0)
    # Block by block 0.8, 0.5 and 1.0: twice the samples in 1.25 times the time are 0.8 of two single ranks.
    assert (two.num_ranks, two.seconds_per_step, two.samples_per_second, two.efficiency) == (2, 0.4, 50.0, 0.8)
    assert (two.node_bytes, one.faults_per_step) == (150, 0.5)


def test_parameters_are_counted_as_the_network_has_them() -> None:
    model = BenchModel((20, 7, 5, 3), 8, 1)
    network = mlp((20,), 3, hidden=(7, 5))
    assert num_parameters(model) == FlatParameters(network.named_parameters()).size


# ---- what the kernel says


def test_the_largest_cache_counts(tmp_path: Path) -> None:
    for number, size in enumerate(("48K", "2048K", "32M")):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        (folder / "size").write_text(f"{size}\n")
    assert last_level_cache_bytes(tmp_path) == 32 * MIB
    assert last_level_cache_bytes(tmp_path / "nowhere") == 64 * MIB


def test_memory_is_the_proportional_set(tmp_path: Path) -> None:
    path = tmp_path / "smaps_rollup"
    path.write_text("55d0-7ffd ---p 00000000 00:00 0    [rollup]\nRss:   9000 kB\nPss:    4096 kB\nPss_Dirty: 7 kB\n")
    assert proportional_set_bytes(path) == 4 * MIB


def test_pages_that_are_new_show_in_memory_and_faults() -> None:
    before, faults = proportional_set_bytes(), minor_faults()
    with mmap.mmap(-1, 32 * MIB) as memory:
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        memory.write(b"\1" * (32 * MIB))
        # A little may have been given back meanwhile.
        assert proportional_set_bytes() - before >= 31 * MIB
        assert minor_faults() - faults >= 32 * MIB // mmap.PAGESIZE


@pytest.mark.parametrize(("size", "ranks_per_node"), [(1, 1), (3, 3), (3, 1)])
def test_copies_exceed_the_cache_of_every_node_and_count_both_ways(size: int, ranks_per_node: int) -> None:
    def run(communicator) -> tuple[Copying, np.ndarray]:
        copying = Copying(communicator, ranks_per_node, 4 * MIB)
        return copying, copying.seconds(2)

    for copying, seconds in run_ranks(size, run):
        own_bytes = copying._source.nbytes
        assert ranks_per_node * own_bytes >= 4 * MIB
        assert copying.num_bytes == 2 * size * own_bytes
        assert (copying._target == copying._source).all()
        assert seconds.shape == (2,)
