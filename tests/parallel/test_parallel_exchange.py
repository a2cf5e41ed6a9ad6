"""Exchange and agreement with ranks as threads: any world size, any number of shards, any vector length."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_bp.errors import DisagreementError
from ddp_bp.parallel import exchange as exchange_module
from ddp_bp.parallel.agreement import Agreement, Status
from ddp_bp.parallel.exchange import SliceExchange
from ddp_bp.parallel.membership import SLICE_ALIGNMENT_ELEMENTS, shard_run, slice_bounds
from ddp_bp.parallel.single import SingleCommunicator
from ddp_bp.parallel.threads import run_ranks
from ddp_bp.parallel.tree import merge_counts, tree_sum


def shard_gradient(shard: int, size: int) -> np.ndarray:
    return np.random.default_rng(shard).normal(size=size).astype(np.float32) * np.float32(10.0 ** (shard % 5))


def train_once(comm, size: int, num_shards: int, parameters: np.ndarray) -> np.ndarray:
    """One update `p -= 0.1 * g` on this rank, with partials by carry."""
    run = shard_run(num_shards, comm.size, comm.rank)
    stack: list[np.ndarray] = []
    for shard, count in zip(run, merge_counts([(s, s + 1) for s in run], num_shards), strict=True):
        stack.append(shard_gradient(shard, size))
        for _ in range(count):
            right = stack.pop()
            stack[-1] = stack[-1] + right
    exchange = SliceExchange(comm, size, num_shards, np.float32)
    before = [partial.copy() for partial in stack]

    def update(lo: int, hi: int, gradient: np.ndarray) -> None:
        gradient *= np.float32(0.1)
        parameters[lo:hi] -= gradient
        gradient.fill(np.nan)

    for _ in range(2):
        exchange.reduce(stack, update)
        exchange.publish(parameters)
    for partial, original in zip(stack, before, strict=True):
        np.testing.assert_array_equal(partial, original)
    return parameters


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.sampled_from([1, 5, 1023, 1024, 1025, 4100, 9000]))
def test_parameters_have_the_same_bits_for_any_world_size(num_shards: int, world_size: int, size: int) -> None:
    expected = np.ones(size, np.float32)
    gradient = tree_sum(np.stack([shard_gradient(shard, size) for shard in range(num_shards)]))
    for _ in range(2):
        expected -= gradient * np.float32(0.1)
    for result in run_ranks(world_size, lambda c: train_once(c, size, num_shards, np.ones(size, np.float32))):
        np.testing.assert_array_equal(result, expected)


def test_blocks_do_not_change_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 5000
    whole = train_once(SingleCommunicator(), size, 3, np.ones(size, np.float32))
    monkeypatch.setattr(exchange_module, "BLOCK_ELEMENTS", 700)
    for result in run_ranks(2, lambda c: train_once(c, size, 3, np.ones(size, np.float32))):
        np.testing.assert_array_equal(result, whole)


@given(st.integers(0, 10**7), st.integers(1, 300))
def test_slices_are_contiguous_aligned_and_even(size: int, world_size: int) -> None:
    slices = slice_bounds(size, world_size)
    assert len(slices) == world_size
    assert slices[0][0] == 0
    assert slices[-1][1] == size
    assert all(left[1] == right[0] for left, right in itertools.pairwise(slices))
    assert all(lo % SLICE_ALIGNMENT_ELEMENTS == 0 or lo == size for lo, _ in slices)
    lengths = [hi - lo for lo, hi in slices]
    assert max(lengths) - min(lengths) <= 2 * SLICE_ALIGNMENT_ELEMENTS


def agree(comm, num_shards: int, layout: int = 7, step: int = 3):
    agreement = Agreement(comm, num_shards, layout)
    for index, shard in enumerate(shard_run(num_shards, comm.size, comm.rank)):
        agreement.report_shard(index, 0.1 * (shard + 1), shard + 1, shard, 100 + shard, finite=shard != 4)
    status = Status.FAILED if comm.rank == 1 else Status.READY
    return agreement.agree(step, status=status, requests=1 << comm.rank, squared_norm=2.0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_rank_sees_the_same_verdict(world_size: int) -> None:
    verdicts = run_ranks(world_size, lambda comm: agree(comm, num_shards=6))
    first = verdicts[0]
    for verdict in verdicts:
        assert verdict.loss == tree_sum(np.array([0.1 * (shard + 1) for shard in range(6)]))
        assert (verdict.weight, verdict.correct) == (21.0, 15.0)
        assert verdict.shard_digests.tolist() == [100, 101, 102, 103, 104, 105]
        assert verdict.nonfinite_shards == (4,)
        assert verdict.failed_ranks == ((1,) if world_size > 1 else ())
        assert verdict.requests == 2**world_size - 1
        assert verdict.squared_norm == first.squared_norm == 2.0 * world_size


@pytest.mark.parametrize("field", ["layout", "step"])
def test_ranks_that_differ_are_all_told_who_has_what(field: str) -> None:
    def rank(comm):
        with pytest.raises(DisagreementError) as caught:
            agree(comm, 4, **{field: 0x10 + (comm.rank == 2)})
        return str(caught.value)

    messages = run_ranks(3, rank)
    assert len(set(messages)) == 1
    assert "rank 0: 0x10, rank 1: 0x10, rank 2: 0x11" in messages[0]
