"""The reduction tree: one fixed order in which shards are summed, whoever sums them.

Floating-point addition is not associative, so a sum has the same bits on any number of ranks only if its order does not
depend on them. The tree over leaves [0, n) splits a node [a, b) at `a` plus the largest power of two below its length,
the shape of a Merkle tree in RFC 6962, section 2.1: neighbours are paired level by level, and an odd one rides up. Its
nodes are what a binary counter carries: a rank that adds its leaves from left to right holds few partials at a time.

Pure functions of numbers: nothing here knows a rank or an array's meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt

Node = tuple[int, int]


def split(lo: int, hi: int) -> int:
    """The leaf at which node [lo, hi) of two leaves or more divides into its two children."""
    return lo + (1 << ((hi - lo - 1).bit_length() - 1))


def maximal_nodes(lo: int, hi: int, num_leaves: int) -> list[Node]:
    """The fewest nodes of the tree over [0, num_leaves) that together cover the leaves [lo, hi), from left to right."""
    nodes: list[Node] = []
    waiting = [(0, num_leaves)] if num_leaves else []
    while waiting:
        a, b = waiting.pop()
        if lo <= a and b <= hi:
            nodes.append((a, b))
        elif a < hi and lo < b:
            middle = split(a, b)
            waiting += [(middle, b), (a, middle)]
    return nodes


def merge_counts(nodes: Sequence[Node], num_leaves: int) -> list[int]:
    """After each of `nodes`, put on a stack from left to right: how many times to replace the top two by their sum.

    Two neighbours on the stack are summed exactly when they are the two children of one node. With all leaves as
    `nodes`, or with any set of nodes that covers [0, num_leaves), one sum is left: the root. Nothing is
    summed over a gap between two nodes.
    """
    counts = []
    stack: list[Node] = []
    for node in nodes:
        stack.append(node)
        count = 0
        while len(stack) > 1 and _are_siblings(stack[-2], stack[-1], num_leaves):
            (a, _), (_, b) = stack[-2:]
            stack[-2:] = [(a, b)]
            count += 1
        counts.append(count)
    return counts


def merged_nodes(nodes: Sequence[Node], num_leaves: int) -> list[Node]:
    """The nodes that are left when `merge_counts` has been followed."""
    stack: list[Node] = []
    for node, count in zip(nodes, merge_counts(nodes, num_leaves), strict=True):
        stack.append(node)
        for _ in range(count):
            (_, stop) = stack.pop()
            stack[-1] = (stack[-1][0], stop)
    return stack


def stack_depth(counts: Sequence[int]) -> int:
    """How many sums lie on the stack at most while following `merge_counts`."""
    depth = deepest = 0
    for count in counts:
        depth += 1
        deepest = max(deepest, depth)
        depth -= count
    return deepest


def tree_sum(values: npt.NDArray[Any]) -> Any:
    """Sum `values` (n, ...) over its first axis in the order of the tree; zeros for n = 0. Shape (...)."""
    if len(values) == 0:
        return np.zeros(values.shape[1:], values.dtype)[()]
    while len(values) > 1:
        even = len(values) // 2 * 2
        paired = values[0:even:2] + values[1:even:2]
        values = np.concatenate([paired, values[even:]])
    return values[0]


def tree_sum_of_numbers(values: Sequence[float]) -> float:
    """The same for Python's numbers, and the same bits as `tree_sum` in float64."""
    while len(values) > 1:
        paired = list(map(add, values[::2], values[1::2]))
        if len(values) % 2:
            paired.append(values[-1])
        values = paired
    return values[0] if values else 0.0


def _are_siblings(left: Node, right: Node, num_leaves: int) -> bool:
    """Whether two nodes are the children of one node: found by walking down from the root."""
    if left[1] != right[0]:
        return False
    a, b = 0, num_leaves
    while b - a > 1:
        middle = split(a, b)
        if (a, b) == (left[0], right[1]):
            return middle == left[1]
        a, b = (a, middle) if right[1] <= middle else (middle, b)
        if not (a <= left[0] and right[1] <= b):
            return False
    return False
