"""Gradient exchange: every rank sums its own slice of the partials along the reduction tree, and publishes results.

Each rank has one vector per maximal tree node of its shards, its partials, in memory that the ranks of its node share.
So inside a node nothing is sent: a rank walks the tree over everybody's partials where they lie, block by block, hands
on every finished block, and what comes of it (parameters, optimizer state) is written to where all ranks of the node
read it. What other nodes contribute arrives by messages, see `between_nodes`. The order of every sum is the tree's.

This module sees flat arrays only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ddp_bp.parallel.between_nodes import BetweenNodes
from ddp_bp.parallel.communicator import Array, Bounds, Communicator
from ddp_bp.parallel.holdings import Holdings
from ddp_bp.parallel.membership import node_ranges
from ddp_bp.parallel.nodes import Nodes, slices_by_rank
from ddp_bp.parallel.walk import Walk, total_of

TakeBlock = Callable[[int, int, Array], None]


class Ownership:
    """Which elements of a vector (N,) each rank updates: its slice.

    The nodes have a range each, or every node has all elements, and then updates a copy of its own.
    """

    def __init__(self, communicator: Communicator, nodes: Nodes, ranges: Sequence[Bounds]) -> None:
        rank = communicator.rank
        self.ranges = tuple(ranges)
        """By node, the elements [lo, hi) of the vector that its ranks update."""
        self.slices = slices_by_rank(nodes, self.ranges)
        """By rank, its slice [lo, hi)."""
        self.bounds: Bounds = self.slices[rank]
        """The slice [lo, hi) of the vector that is this rank's."""
        self.longest_slice = max(last - first for first, last in self.slices)
        """Elements of the longest slice of any rank."""
        self.is_copied = len(self.ranges) > 1 and len(set(self.ranges)) == 1 and self.ranges[0][0] < self.ranges[0][1]
        """Whether every node updates all elements."""
        self.is_first_copy = not self.is_copied or nodes.node_of_rank[rank] == 0
        """Whether no rank with a lower number updates what this one does."""
        self.order: Sequence[Bounds] = [(0, max(last for _, last in self.slices))]
        """Pieces of the vector, in the order in which their sums come."""
        self.num_rounds = 0
        """How many exchanges have come to their end in the background, as a sign of progress for who looks on."""


class Exchange(Ownership):
    """Sums and publishes vectors (N,) over all ranks. Construct and call on all ranks alike."""

    def __init__(
        self,
        communicator: Communicator,
        nodes: Nodes,
        num_elements: int,
        num_shards: int,
        holdings: Holdings,
        *,
        ranges: Sequence[Bounds] | None = None,
        pending: Sequence[Bounds] | None = None,
        num_rounded: int = 0,
    ) -> None:
        """Sums what `holdings` say of all nodes.

        Args:
            ranges: by node, which elements its ranks update; by default in proportion to the number of ranks. If each
                node has all of them, only sums are exchanged, and no results.
            pending: which elements are summed at all; by default all of them.
            num_rounded: how many elements, from the first, have sums that are rounded to bfloat16.
        """
        self._communicator = communicator
        super().__init__(
            communicator, nodes, ranges or node_ranges(num_elements, [len(ranks) for ranks in nodes.ranks])
        )
        lo, hi = self.bounds
        number = nodes.node_of_rank[communicator.rank]
        walked = [(node, vector, 0) for node, vector in zip(holdings.tree_nodes[number], holdings.vectors, strict=True)]
        self._between = None
        if len(nodes.ranks) > 1:
            self._between = BetweenNodes(
                communicator,
                nodes,
                self.slices,
                holdings.tree_nodes,
                holdings.vectors,
                num_shards,
                holdings.dtype,
                num_rounded=num_rounded,
            )
            walked += [(node, vector, lo) for node, vector in self._between.incoming]
        walked.sort(key=lambda entry: entry[0])
        walk = Walk([node for node, _, _ in walked], num_shards, hi - lo, holdings.dtype, num_rounded)
        own = [(max(lo, first), min(hi, last)) for first, last in ([(0, num_elements)] if pending is None else pending)]
        # Another rank may have to finish what this one has begun, and then needs all partials.
        keeps = communicator.size > 1
        self._blocks = walk.plan([(vector, origin) for _, vector, origin in walked], own, keeps=keeps)

    def begin(self) -> None:
        """Nothing to do before all is computed."""

    def release_all(self) -> None:
        """Nothing to do before all ranks have agreed."""

    def finish(self) -> None:
        """Nothing has begun."""

    def close(self) -> None:
        """Nothing to release."""

    def reduce(self, take: TakeBlock) -> None:
        """Sum the partials of all ranks, once they have agreed that these are complete. Collective.

        `take(lo, hi, total)` is called for each block of this rank's slice, in order, with the sum over all shards; it
        may use `total` (hi - lo,) as scratch memory. Partials may be written again after `publish`.
        """
        if self._between is not None:
            self._between.send_partials()
        for block in self._blocks:
            take(block.lo, block.hi, total_of(block))

    def summing_into(self, target: Array) -> Callable[[], None]:
        """A function that sums the partials of all ranks into `target` (N,), where all ranks then read the sum.

        For whoever wants the sum itself, and not what an optimizer makes of it. `target` lies in memory that the ranks
        of the node share, and may be one of the partials, which then is used up. The function is collective.
        """
        blocks = [block.into(target) for block in self._blocks]

        def sum_up() -> None:
            if self._between is not None:
                self._between.send_partials()
            for block in blocks:
                total_of(block)
            self.publish(target)

        return sum_up

    def publish(self, array: Array, offset: int = 0) -> None:
        """Let all ranks see `array`, in which each rank has written its own slice; see `send_results`. Collective."""
        self.send_results(array, offset)
        self._communicator.barrier()

    def send_results(self, array: Array, offset: int = 0) -> None:
        """Let the other nodes see `array`, without waiting for the ranks of this one to have written. Collective.

        `array` (n,), of any dtype, is shared by the ranks of the node and stands for elements [offset, offset + n) of
        the vector.
        """
        if self._between is not None and not self.is_copied:
            self._between.send_results(array, offset)
