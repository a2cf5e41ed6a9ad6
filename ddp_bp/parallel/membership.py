"""Who owns what: shards and slices as pure functions of (world size, rank). Knows no communicator."""

from __future__ import annotations

import itertools

# One page of float32. Slices begin on a multiple of it, so that no two ranks write to one page or one cache line.
SLICE_ALIGNMENT_ELEMENTS = 1024


def shard_run(num_shards: int, world_size: int, rank: int) -> range:
    """The contiguous shards that a rank computes. Runs differ in length by at most one; some are empty if W > V."""
    return range(rank * num_shards // world_size, (rank + 1) * num_shards // world_size)


def slice_bounds(num_elements: int, world_size: int) -> list[tuple[int, int]]:
    """Each rank's slice [lo, hi) of a flat vector of `num_elements`, in rank order, on aligned boundaries."""
    num_pages = -(-num_elements // SLICE_ALIGNMENT_ELEMENTS)
    edges = [rank * num_pages // world_size * SLICE_ALIGNMENT_ELEMENTS for rank in range(world_size + 1)]
    edges[-1] = num_elements
    return [(min(lo, num_elements), min(hi, num_elements)) for lo, hi in itertools.pairwise(edges)]


def clip_bounds(bounds: tuple[int, int], offset: int, size: int) -> tuple[int, int]:
    """What of the elements [lo, hi) = `bounds` lies in [offset, offset + size), counted from `offset`."""
    lo, hi = (min(max(edge - offset, 0), size) for edge in bounds)
    return lo, hi
