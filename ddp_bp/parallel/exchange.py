"""Gradient exchange: every rank sums its own slice of the partials along the reduction tree, and publishes results.

Each rank holds one vector per maximal tree node of its shards. Slice j of each goes to rank j, which walks the tree
block by block and hands on every finished block. What was made of the sums, a slice on each rank, is then given to all.
So a gradient crosses the network once, each parameter is updated once, and the order of every sum is the tree's.

This is the seam for other ways to move partials (shared memory inside a node, overlap with backward between nodes).
It sees flat arrays only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ddp_bp.parallel.communicator import Array, Communicator
from ddp_bp.parallel.membership import clip_bounds, shard_run, slice_bounds
from ddp_bp.parallel.tree import maximal_nodes, merge_counts, stack_depth

# Elements of one block of the walk: 256 KiB of float32, so that a few partials of it stay in a 1 MiB L2 cache.
BLOCK_ELEMENTS = 65536

TakeBlock = Callable[[int, int, Array], None]


class Exchange(Protocol):
    """A way to sum the partials of all ranks, each rank its own slice, and to tell all ranks what came of it."""

    @property
    def bounds(self) -> tuple[int, int]:
        """The slice [lo, hi) of the flat vector (N,) that is this rank's."""

    def reduce(self, partials: Sequence[Array], take: TakeBlock) -> None:
        """Sum the partials of all ranks. Collective.

        Args:
            partials: this rank's sums, one (N,) array per maximal tree node of its shards, from left to right.
            take: called as `take(lo, hi, total)` for each block of this rank's slice, in order, with the sum over all
                shards; it may use `total` (hi - lo,) as scratch memory.
        """

    def publish(self, array: Array, offset: int = 0) -> None:
        """Complete `array`, in place: each rank has written its own part of it. Collective.

        `array` (n,), of any dtype, stands for elements [offset, offset + n) of the flat vector.
        """


class SliceExchange:
    """Exchange by messages between ranks: all-to-all of slice partials, tree, all-gather of parameters."""

    def __init__(self, communicator: Communicator, num_elements: int, num_shards: int, dtype: npt.DTypeLike) -> None:
        self._communicator = communicator
        world, rank = communicator.size, communicator.rank
        self._slices = slice_bounds(num_elements, world)
        self.bounds = self._slices[rank]
        # Everyone's nodes follow from the shard plan, so no rank needs to tell.
        self._node_counts = []
        nodes = []
        for other in range(world):
            run = shard_run(num_shards, world, other)
            owned = maximal_nodes(run.start, run.stop, num_shards)
            self._node_counts.append(len(owned))
            nodes += owned
        self._merges = merge_counts(nodes, num_shards)
        lo, hi = self.bounds
        self._received = [
            [np.empty(hi - lo, dtype) for _ in range(count if other != rank else 0)]
            for other, count in enumerate(self._node_counts)
        ]
        block = min(BLOCK_ELEMENTS, hi - lo)
        self._scratch = [np.empty(block, dtype) for _ in range(stack_depth(self._merges))]

    def reduce(self, partials: Sequence[Array], take: TakeBlock) -> None:
        slices = self._distribute(partials)
        lo, hi = self.bounds
        for start in range(lo, hi, BLOCK_ELEMENTS):
            stop = min(start + BLOCK_ELEMENTS, hi)
            take(start, stop, self._sum_block([piece[start - lo : stop - lo] for piece in slices]))

    def publish(self, array: Array, offset: int = 0) -> None:
        if self._communicator.size > 1:
            self._communicator.allgather_slices(
                array, [clip_bounds(bounds, offset, array.size) for bounds in self._slices]
            )

    def _distribute(self, partials: Sequence[Array]) -> list[Array]:
        """My slice of every rank's partials, in the order of the tree's leaves."""
        rank = self._communicator.rank
        if len(partials) != self._node_counts[rank]:
            raise ValueError(f"rank {rank}: expected {self._node_counts[rank]} partials, got {len(partials)}")
        lo, hi = self.bounds
        if self._communicator.size > 1:
            sends = [
                (other, partial[a:b])
                for other, (a, b) in enumerate(self._slices)
                for partial in partials
                if other != rank and b > a
            ]
            receives = [(other, array) for other, arrays in enumerate(self._received) for array in arrays if hi > lo]
            self._communicator.exchange(sends, receives)
        mine = [partial[lo:hi] for partial in partials]
        return [piece for other, arrays in enumerate(self._received) for piece in (mine if other == rank else arrays)]

    def _sum_block(self, pieces: Sequence[Array]) -> Array:
        """One block of the sum over all nodes, in scratch memory; the pieces stay as they are."""
        if len(pieces) == 1:
            total: Array = self._scratch[0][: len(pieces[0])]
            np.copyto(total, pieces[0])
            return total
        stack: list[npt.NDArray[Any]] = []
        for piece, num_merges in zip(pieces, self._merges, strict=True):
            stack.append(piece)
            for _ in range(num_merges):
                right = stack.pop()
                scratch = self._scratch[len(stack) - 1][: len(piece)]
                stack[-1] = np.add(stack[-1], right, out=scratch)
        return stack[0]
