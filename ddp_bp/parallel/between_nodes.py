"""The exchange between nodes: sums of a node's partials go to whoever updates them, and results come back.

Every rank stands for one part of the vector towards the other nodes. For its part it sums what can be summed inside the
node, sends each piece to the rank whose slice it lies in, and later receives the results into the memory of the node.
So a gradient leaves a node once, whatever the number of ranks there. Which messages there are follows from the shard
plan and is the same in each step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ddp_bp.parallel.apart import allocate_apart
from ddp_bp.parallel.communicator import Array, Bounds, Communicator
from ddp_bp.parallel.membership import clip_bounds, split_range
from ddp_bp.parallel.nodes import Nodes
from ddp_bp.parallel.tree import Node, merged_nodes
from ddp_bp.parallel.walk import BLOCK_ELEMENTS, Walk

Message = tuple[int, Array]
"""A rank, and what is sent to it or comes from it."""


class BetweenNodes:
    """One rank's messages with the ranks of other nodes. Construct and call on all ranks alike."""

    def __init__(
        self,
        communicator: Communicator,
        nodes: Nodes,
        slices: Sequence[Bounds],
        tree_nodes: Sequence[Sequence[Node]],
        partials: Sequence[Array],
        num_shards: int,
        dtype: npt.DTypeLike,
        bounds: Bounds | None = None,
        num_rounded: int = 0,
    ) -> None:
        """Vectors are (N,) of `dtype`.

        Args:
            slices: by rank, what it updates.
            bounds: the elements [lo, hi) that are exchanged at all; by default all of them.
            num_rounded: how many elements, from the first, have sums that are rounded to bfloat16.
            tree_nodes: by node, the tree nodes that the partials of its ranks stand for.
            partials: the partials of all ranks of this node, in the order of `tree_nodes`.
        """
        self._communicator, self._partials, self._slices = communicator, partials, slices
        bounds = bounds or (0, max(hi for _, hi in slices))
        rank = communicator.rank
        own = nodes.node_of_rank[rank]
        self._others = [number for number in range(len(nodes.ranks)) if number != own]
        self._nodes = nodes
        self._parts: dict[int, Bounds] = {}
        for ranks in nodes.ranks:
            self._parts.update(zip(ranks, split_range(bounds, len(ranks)), strict=True))
        lo, hi = self._parts[rank]
        self._walk = Walk(tree_nodes[own], num_shards, hi - lo, dtype, num_rounded)
        num_sums = len(merged_nodes(tree_nodes[own], num_shards))
        # Without anything to sum, partials are sent from where they lie.
        self._sums = [allocate_apart(hi - lo, dtype) for _ in range(num_sums)] if self._walk.has_sums else []
        self._away = [
            part for number in self._others for part in _overlaps(lo, hi, [slices[r] for r in nodes.ranks[number]])
        ]
        mine = slices[rank]
        self._received = {
            number: [allocate_apart(mine[1] - mine[0], dtype) for _ in merged_nodes(tree_nodes[number], num_shards)]
            for number in self._others
        }
        self.incoming: list[tuple[Node, Array]] = [
            (node, array)
            for number in self._others
            for node, array in zip(merged_nodes(tree_nodes[number], num_shards), self._received[number], strict=True)
        ]
        """The sums of other nodes over this rank's slice, with the tree nodes that they stand for."""
        vectors, start = (self._sums, lo) if self._walk.has_sums else (list(partials), 0)
        self.sends = [
            (other, vector[a - start : b - start])
            for other, a, b in self._meetings(lo, hi, slices)
            for vector in vectors
        ]
        """What `send_partials` sends, once `sum_away` has been called, and to which ranks."""
        self.receives = [
            (other, array[a - mine[0] : b - mine[0]])
            for other, a, b in self._meetings(*mine, self._parts)
            for array in self._received[nodes.node_of_rank[other]]
        ]
        """Where it comes in, and from which ranks."""

    def send_partials(self) -> None:
        """Fill `incoming`, and that of all others. Collective."""
        self.sum_away()
        self._communicator.exchange(self.sends, self.receives)

    def send_results(self, array: Array, offset: int) -> None:
        """Tell the other nodes this rank's slice of `array` (n,), elements [offset, offset + n). Collective."""
        self._communicator.exchange(*self.results(array, offset))

    def results(self, array: Array, offset: int = 0) -> tuple[list[Message], list[Message]]:
        """What `send_results` sends and receives."""
        rank = self._communicator.rank

        def pieces(own: Bounds, theirs: Sequence[Bounds] | dict[int, Bounds]) -> list[Message]:
            met = [(other, clip_bounds((a, b), offset, array.size)) for other, a, b in self._meetings(*own, theirs)]
            return [(other, array[a:b]) for other, (a, b) in met if a < b]

        return pieces(self._slices[rank], self._parts), pieces(self._parts[rank], self._slices)

    def _meetings(
        self, lo: int, hi: int, theirs: Sequence[Bounds] | dict[int, Bounds]
    ) -> Iterator[tuple[int, int, int]]:
        """(rank, first, last) for each rank of another node whose range in `theirs` meets [lo, hi)."""
        for number in self._others:
            for other in self._nodes.ranks[number]:
                a, b = max(lo, theirs[other][0]), min(hi, theirs[other][1])
                if a < b:
                    yield other, a, b

    def sum_away(self) -> None:
        """Sum this node's partials over the elements of this rank's part that other nodes update. Not collective."""
        if not self._walk.has_sums:
            return
        lo, _ = self._parts[self._communicator.rank]
        for first, last in self._away:
            for start in range(first, last, BLOCK_ELEMENTS):
                stop = min(start + BLOCK_ELEMENTS, last)
                sums = self._walk.sums([vector[start:stop] for vector in self._partials], start)
                for into, piece in zip(self._sums, sums, strict=True):
                    np.copyto(into[start - lo : stop - lo], piece)


def _overlaps(lo: int, hi: int, ranges: Sequence[Bounds]) -> list[Bounds]:
    """What of [lo, hi) lies in each of `ranges`, without those that it does not meet."""
    clipped = [(max(lo, a), min(hi, b)) for a, b in ranges]
    return [(a, b) for a, b in clipped if a < b]
