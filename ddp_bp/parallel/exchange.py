"""Gradient exchange: every rank sums its own slice of the partials along the reduction tree, and publishes results.

Each rank has one vector per maximal tree node of its shards, its partials, in memory that the ranks of its node share.
So inside a node nothing is sent: a rank walks the tree over everybody's partials where they lie, block by block, hands
on every finished block, and what comes of it (parameters, optimizer state) is written to where all ranks of the node
read it. What other nodes contribute arrives by messages, see `between_nodes`. The order of every sum is the tree's.

This module sees flat arrays only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ddp_bp.parallel.between_nodes import BetweenNodes
from ddp_bp.parallel.communicator import Array, Bounds, Communicator
from ddp_bp.parallel.membership import node_ranges, shard_run
from ddp_bp.parallel.nodes import Nodes, share, slices_by_rank
from ddp_bp.parallel.tree import maximal_nodes, merge_counts, stack_depth
from ddp_bp.parallel.walk import BLOCK_ELEMENTS, Walk

TakeBlock = Callable[[int, int, Array], None]


class Exchange:
    """Sums and publishes vectors (N,) over all ranks. Construct and call on all ranks alike."""

    def __init__(
        self,
        communicator: Communicator,
        nodes: Nodes,
        num_elements: int,
        num_shards: int,
        dtype: npt.DTypeLike,
        ranges: Sequence[Bounds] | None = None,
    ) -> None:
        """`ranges`: by node, which elements its ranks update; by default in proportion to the number of ranks."""
        self._communicator, self._nodes = communicator, nodes
        rank = communicator.rank
        self.ranges = tuple(ranges or node_ranges(num_elements, [len(ranks) for ranks in nodes.ranks]))
        """By node, the elements [lo, hi) of the vector that its ranks update."""
        slices = slices_by_rank(nodes, self.ranges)
        self.bounds: Bounds = slices[rank]
        """The slice [lo, hi) of the vector that is this rank's."""
        # Everyone's tree nodes and stacks follow from the shard plan, so no rank needs to tell.
        runs = [shard_run(num_shards, communicator.size, other) for other in range(communicator.size)]
        owned = [maximal_nodes(run.start, run.stop, num_shards) for run in runs]
        depths = [stack_depth(merge_counts([(shard, shard + 1) for shard in run], num_shards)) for run in runs]
        number = nodes.node_of_rank[rank]
        mine = nodes.ranks[number]
        rows = self.allocate("partials", (sum(depths[other] for other in mine), num_elements), dtype)
        edges = np.cumsum([0, *(depths[other] for other in mine)])
        stacks = {other: rows[first:last] for other, first, last in zip(mine, edges[:-1], edges[1:], strict=True)}
        self.partials: list[Array] = list(stacks[rank])
        """This rank's vectors (N,): the stack on which it sums its shards. The lowest ones are what it hands in."""
        of_node = [[node for other in ranks for node in owned[other]] for ranks in nodes.ranks]
        handed_in = [stacks[other][place] for other in mine for place in range(len(owned[other]))]
        lo, hi = self.bounds
        walked = [(node, vector[lo:hi]) for node, vector in zip(of_node[number], handed_in, strict=True)]
        self._between = None
        if len(nodes.ranks) > 1:
            self._between = BetweenNodes(communicator, nodes, slices, of_node, handed_in, num_shards, dtype)
            walked += self._between.incoming
        walked.sort(key=lambda entry: entry[0])
        self._walked = [vector for _, vector in walked]
        self._walk = Walk([node for node, _ in walked], num_shards, hi - lo, dtype)

    def allocate(self, name: str, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """A zeroed array that all ranks of the node share. Collective. `name` is for the system's own tools."""
        kind, num_elements = np.dtype(dtype), int(np.prod(shape))
        memory = share(self._communicator, self._nodes, num_elements * kind.itemsize, name)
        array: Array = np.frombuffer(memory, kind, num_elements).reshape(shape)
        return array

    def reduce(self, take: TakeBlock) -> None:
        """Sum the partials of all ranks, once they have agreed that these are complete. Collective.

        `take(lo, hi, total)` is called for each block of this rank's slice, in order, with the sum over all shards; it
        may use `total` (hi - lo,) as scratch memory. Partials may be written again after `publish`.
        """
        if self._between is not None:
            self._between.send_partials()
        lo, hi = self.bounds
        for start in range(0, hi - lo, BLOCK_ELEMENTS):
            stop = min(start + BLOCK_ELEMENTS, hi - lo)
            take(lo + start, lo + stop, self._walk.total([vector[start:stop] for vector in self._walked]))

    def publish(self, array: Array, offset: int = 0) -> None:
        """Let all ranks see `array`, in which each rank has written its own slice; see `send_results`. Collective."""
        self.send_results(array, offset)
        self._communicator.barrier()

    def send_results(self, array: Array, offset: int = 0) -> None:
        """Let the other nodes see `array`, without waiting for the ranks of this one to have written. Collective.

        `array` (n,), of any dtype, comes from `allocate` and stands for elements [offset, offset + n) of the vector.
        """
        if self._between is not None:
            self._between.send_results(array, offset)
