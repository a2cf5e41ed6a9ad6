"""Who owns what: shards and slices as pure functions of (world size, rank). Knows no communicator."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

# One page of float32. Slices begin on a multiple of it, so that no two ranks write to one page or one cache line.
SLICE_ALIGNMENT_ELEMENTS = 1024


def shard_run(num_shards: int, world_size: int, rank: int) -> range:
    """The contiguous shards that a rank computes. Runs differ in length by at most one; some are empty if W > V."""
    return range(rank * num_shards // world_size, (rank + 1) * num_shards // world_size)


def slice_bounds(num_elements: int, count: int) -> list[tuple[int, int]]:
    """A flat vector of `num_elements` cut into `count` contiguous slices [lo, hi), in order, on aligned boundaries."""
    return split_range((0, num_elements), count)


def split_range(bounds: tuple[int, int], count: int) -> list[tuple[int, int]]:
    """The elements [lo, hi) = `bounds`, of which `lo` is aligned, cut into `count` slices, in order, likewise."""
    first, last = bounds
    num_pages = -(-(last - first) // SLICE_ALIGNMENT_ELEMENTS)
    edges = [first + place * num_pages // count * SLICE_ALIGNMENT_ELEMENTS for place in range(count + 1)]
    return [(min(lo, last), min(hi, last)) for lo, hi in itertools.pairwise(edges)]


def node_ranges(num_elements: int, ranks_per_node: Sequence[int]) -> list[tuple[int, int]]:
    """What of a vector the ranks of each node update: contiguous, by node, in proportion to their number."""
    slices = slice_bounds(num_elements, sum(ranks_per_node))
    edges = [0, *itertools.accumulate(ranks_per_node)]
    return [(slices[first][0], slices[last - 1][1]) for first, last in itertools.pairwise(edges)]


def overlap(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    """The elements [lo, hi) that are in both ranges; none where lo is not below hi."""
    return max(first[0], second[0]), min(first[1], second[1])


def clip_bounds(bounds: tuple[int, int], offset: int, size: int) -> tuple[int, int]:
    """What of the elements [lo, hi) = `bounds` lies in [offset, offset + size), counted from `offset`."""
    lo, hi = (min(max(edge - offset, 0), size) for edge in bounds)
    return lo, hi
