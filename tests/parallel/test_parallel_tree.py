"""The reduction tree: one order of sums, however the leaves are spread over ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_bp.parallel.membership import shard_run
from ddp_bp.parallel.tree import maximal_nodes, merge_counts, split, stack_depth, tree_sum


def expression(lo: int, hi: int) -> str:
    """The tree written out from its definition: the reference for everything else."""
    if hi - lo == 1:
        return str(lo)
    middle = split(lo, hi)
    return f"({expression(lo, middle)}+{expression(middle, hi)})"


def follow(labels: list[str], counts: list[int]) -> list[str]:
    """What lies on the stack after putting on `labels` and merging as `counts` says."""
    stack: list[str] = []
    for label, count in zip(labels, counts, strict=True):
        stack.append(label)
        for _ in range(count):
            right = stack.pop()
            stack[-1] = f"({stack[-1]}+{right})"
    return stack


@pytest.mark.parametrize(
    ("num_leaves", "tree"),
    [(1, "0"), (2, "(0+1)"), (3, "((0+1)+2)"), (5, "(((0+1)+(2+3))+4)"), (7, "(((0+1)+(2+3))+((4+5)+6))")],
)
def test_small_trees_by_hand(num_leaves: int, tree: str) -> None:
    assert expression(0, num_leaves) == tree


@given(st.integers(1, 200))
def test_merging_all_leaves_by_carry_gives_the_tree(num_leaves: int) -> None:
    leaves = [(leaf, leaf + 1) for leaf in range(num_leaves)]
    counts = merge_counts(leaves, num_leaves)
    assert follow([str(leaf) for leaf in range(num_leaves)], counts) == [expression(0, num_leaves)]
    assert stack_depth(counts) <= num_leaves.bit_length() + 1


@given(st.integers(1, 100), st.integers(1, 30))
def test_any_number_of_ranks_sums_in_the_same_order(num_shards: int, world_size: int) -> None:
    nodes, partials = [], []
    for rank in range(world_size):
        run = shard_run(num_shards, world_size, rank)
        owned = maximal_nodes(run.start, run.stop, num_shards)
        counts = merge_counts([(shard, shard + 1) for shard in run], num_shards)
        mine = follow([str(shard) for shard in run], counts)
        # A rank's carry leaves exactly its maximal nodes, each summed in the tree's own order.
        assert mine == [expression(lo, hi) for lo, hi in owned]
        nodes += owned
        partials += mine
    assert follow(partials, merge_counts(nodes, num_shards)) == [expression(0, num_shards)]


@given(st.integers(1, 100), st.integers(1, 30))
def test_runs_of_shards_cover_all_in_order_and_differ_by_at_most_one(num_shards: int, world_size: int) -> None:
    runs = [shard_run(num_shards, world_size, rank) for rank in range(world_size)]
    assert [shard for run in runs for shard in run] == list(range(num_shards))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


@given(st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_tree_sum_has_the_bits_of_the_tree(num_leaves: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(num_leaves, 3)) * 10.0 ** np.arange(-3, 6, 3)

    def recurse(lo: int, hi: int) -> np.ndarray:
        return values[lo] if hi - lo == 1 else recurse(lo, split(lo, hi)) + recurse(split(lo, hi), hi)

    np.testing.assert_array_equal(tree_sum(values), recurse(0, num_leaves))


def test_tree_sum_of_nothing_is_zero() -> None:
    assert tree_sum(np.zeros(0)) == 0.0
    assert tree_sum(np.zeros((0, 2))).tolist() == [0.0, 0.0]
