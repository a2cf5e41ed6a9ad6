"""Exchange and agreement with ranks as threads: any world size, any number of shards, any vector length."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_bp.errors import DisagreementError
from ddp_bp.parallel import between_nodes, walk
from ddp_bp.parallel.agreement import Agreement, Status
from ddp_bp.parallel.arena import Arena
from ddp_bp.parallel.exchange import Exchange
from ddp_bp.parallel.holdings import of_shard_runs
from ddp_bp.parallel.membership import SLICE_ALIGNMENT_ELEMENTS, shard_run, slice_bounds
from ddp_bp.parallel.nodes import Nodes, find_nodes
from ddp_bp.parallel.single import SingleCommunicator
from ddp_bp.parallel.threads import run_ranks
from ddp_bp.parallel.tree import merge_counts, tree_sum


def shard_gradient(shard: int, size: int) -> np.ndarray:
    return np.random.default_rng(shard).normal(size=size).astype(np.float32) * np.float32(10.0 ** (shard % 5))


def train_once(comm, size: int, num_shards: int, node_of_rank: list[int] | None) -> np.ndarray:
    """Two updates `p -= 0.1 * g` on this rank, with partials by carry."""
    nodes = find_nodes(comm) if node_of_rank is None else Nodes(node_of_rank)
    arena = Arena(comm, nodes)
    stack, holdings = of_shard_runs(arena, size, num_shards, np.float32)
    exchange = Exchange(comm, nodes, size, num_shards, holdings)
    parameters = arena.allocate("parameters", size, np.float32)
    lo, hi = exchange.bounds
    parameters[:] = 1
    comm.barrier()

    def update(first: int, last: int, gradient: np.ndarray) -> None:
        assert lo <= first < last <= hi
        gradient *= np.float32(0.1)
        parameters[first:last] -= gradient
        gradient.fill(np.nan)

    run = shard_run(num_shards, comm.size, comm.rank)
    for _ in range(2):
        height = 0
        for shard, count in zip(run, merge_counts([(s, s + 1) for s in run], num_shards), strict=True):
            stack[height][:] = shard_gradient(shard, size)
            height += 1
            for _ in range(count):
                height -= 1
                stack[height - 1] += stack[height]
        before = [partial.copy() for partial in stack[:height]]
        comm.barrier()
        exchange.reduce(update)
        # Where others could have to finish the step, they find all partials as they were.
        for partial, original in zip(stack, before if comm.size > 1 else [], strict=False):
            np.testing.assert_array_equal(partial, original)
        exchange.publish(parameters)
    return parameters.copy()


def expected_after_two_updates(size: int, num_shards: int) -> np.ndarray:
    expected = np.ones(size, np.float32)
    gradient = tree_sum(np.stack([shard_gradient(shard, size) for shard in range(num_shards)]))
    for _ in range(2):
        expected -= gradient * np.float32(0.1)
    return expected


SIZES = st.sampled_from([1, 5, 1023, 1024, 1025, 4100, 9000])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(0, 3), min_size=1, max_size=6), SIZES)
def test_parameters_have_the_same_bits_for_any_ranks_on_any_nodes(
    num_shards: int, node_of_rank: list[int], size: int
) -> None:
    """Also with ranks of a node that are not neighbours, and nodes of unequal size."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(node_of_rank))}
    node_of_rank = [numbers[name] for name in node_of_rank]
    expected = expected_after_two_updates(size, num_shards)
    for result in run_ranks(len(node_of_rank), lambda c: train_once(c, size, num_shards, node_of_rank)):
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("node_of_rank", [None, [0, 0, 0], [0, 1, 1], [0, 1, 2]])
def test_blocks_do_not_change_the_bits(monkeypatch: pytest.MonkeyPatch, node_of_rank: list[int] | None) -> None:
    size = 5000
    for module in (between_nodes, walk):
        monkeypatch.setattr(module, "BLOCK_ELEMENTS", 700)
    for result in run_ranks(3, lambda c: train_once(c, size, 7, node_of_rank)):
        np.testing.assert_array_equal(result, expected_after_two_updates(size, 7))


def test_threads_find_each_other_on_one_node() -> None:
    for nodes in run_ranks(3, find_nodes):
        assert nodes.ranks == ((0, 1, 2),)
        assert nodes.node_of_rank == (0, 0, 0)
    assert find_nodes(SingleCommunicator()).ranks == ((0,),)


def test_nodes_list_their_ranks() -> None:
    nodes = Nodes([0, 1, 0, 2, 1])
    assert nodes.ranks == ((0, 2), (1, 4), (3,))


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
        assert verdict.shard_digests == (100, 101, 102, 103, 104, 105)
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


@pytest.mark.parametrize("node_of_rank", [[0, 1], [0, 1, 1]])
def test_a_node_without_shards_receives_in_the_dtype_of_the_others(node_of_rank: list[int]) -> None:
    """One rank has the only shard: the others hold no partial that could tell them the dtype."""
    values = np.random.default_rng(0).standard_normal(3000)

    def run(comm) -> np.ndarray:
        arena = Arena(comm, Nodes(node_of_rank))
        stack, holdings = of_shard_runs(arena, values.size, 1, np.float64)
        exchange = Exchange(comm, arena.nodes, values.size, 1, holdings)
        totals = arena.allocate("totals", values.size, np.float64)
        for partial in stack:
            partial[:] = values
        comm.barrier()

        def take(lo: int, hi: int, total: np.ndarray) -> None:
            totals[lo:hi] = total

        exchange.reduce(take)
        exchange.publish(totals)
        return totals.copy()

    for totals in run_ranks(len(node_of_rank), run):
        np.testing.assert_array_equal(totals, values)
