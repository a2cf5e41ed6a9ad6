"""Gradient exchange between nodes in buckets, which may begin while backward still goes on.

Every node gets the sum over all shards, in memory that its ranks share, and updates a copy of its own of parameters and
optimizer state. So nothing has to cross a link after the step has been agreed on. As in `exchange`, each gradient
crosses twice at most: a rank sums a piece of each bucket from what all nodes hold, and sends the sum back. All sums
follow the tree, so that neither buckets nor time reach a bit.

In each round every rank begins to exchange partials of one bucket, and while these are on their way sums the bucket
before and begins to send its sums, so that the link always has something to carry. Rounds run in a thread of their own
on a communicator of their own, or, without one, when the partials are complete. Once all have agreed on the step, a
bucket whose sum is there is taken while others are on their way: should a rank die meanwhile, the partials still are
what they were.

This module sees flat arrays only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context

import numpy as np

from ddp_bp.errors import PeerLostError
from ddp_bp.parallel.apart import allocate_apart
from ddp_bp.parallel.between_nodes import BetweenNodes, Message
from ddp_bp.parallel.bfloat16 import pack, unpack
from ddp_bp.parallel.communicator import Array, Bounds, Communicator
from ddp_bp.parallel.exchange import Ownership, TakeBlock
from ddp_bp.parallel.holdings import Holdings
from ddp_bp.parallel.membership import overlap, split_range
from ddp_bp.parallel.nodes import Nodes
from ddp_bp.parallel.walk import BLOCK_ELEMENTS, PlannedBlock, Walk, total_of


class BucketExchange(Ownership):
    """Sums vectors (N,) over all ranks of several nodes. Construct and call on all ranks alike.

    A step is `begin`, `release` for each bucket that is complete, `release_all`, and `reduce` if it is taken or else
    `finish`. Partials may be written again, and the next step may begin, after all ranks have met once more.
    """

    def __init__(
        self,
        communicator: Communicator,
        nodes: Nodes,
        num_shards: int,
        holdings: Holdings,
        totals: Array,
        buckets: Sequence[Bounds],
        *,
        in_background: bool,
        num_rounded: int = 0,
    ) -> None:
        """Sums what `holdings` say of all nodes.

        Args:
            totals: (N,), in memory that the ranks of the node share.
            buckets: pieces of the vector, in the order in which they will be complete.
            in_background: whether they are exchanged as soon as they are, in a thread.
            num_rounded: how many elements, from the first, have partials and sums that are rounded to bfloat16, and are
                sent as such. No bucket may have both kinds.
        """
        super().__init__(communicator, nodes, [(0, totals.size)] * len(nodes.ranks))
        self.buckets = self.order = tuple(buckets)
        """The buckets [lo, hi), in the order in which they are released."""
        self._communicator, self._totals = communicator, totals
        self._own_communicator = communicator.duplicate() if in_background else None
        used = self._own_communicator or communicator
        self._used = used
        self._rounds = [_Round(used, nodes, num_shards, holdings, totals, each, num_rounded) for each in buckets]
        # Who has heard from all ranks of its node knows that what they hold of a bucket is complete.
        token = np.zeros(1, np.uint8)
        neighbours = [rank for rank in nodes.ranks[nodes.node_of_rank[used.rank]] if rank != used.rank]
        self._tokens_out = [(rank, token) for rank in neighbours]
        self._tokens_in = [(rank, np.zeros(1, np.uint8)) for rank in neighbours]
        self._has_neighbours = any(len(ranks) > 1 for ranks in nodes.ranks)
        self._thread: threading.Thread | None = None
        self._released = threading.Semaphore(0)
        self._num_released = 0
        self._arrival = threading.Condition()
        self._num_arrived = 0
        self._is_abandoned = False
        self._error: BaseException | None = None

    def begin(self) -> None:
        """Begin a step."""
        self._released = threading.Semaphore(0)
        self._num_released = self._num_arrived = 0
        if self._own_communicator is not None:
            self._error = None
            # What the caller has set for its own computation, such as how NumPy warns, holds for the sums as well.
            context = copy_context()
            self._thread = threading.Thread(
                target=lambda: context.run(self._run_in_background), name="gradient exchange", daemon=True
            )
            self._thread.start()

    def release(self) -> None:
        """This rank's partials are complete over one bucket more. Not collective."""
        self._num_released += 1
        self._released.release()

    def release_all(self) -> None:
        """This rank's partials are complete, or mean nothing, since the step will not be taken. Not collective."""
        while self._num_released < len(self.buckets):
            self.release()

    def finish(self) -> None:
        """Wait until all ranks of the node can read the sums. Collective; all must have called `release_all`.

        Raises:
            PeerLostError: a rank has died; partials are what they were.
        """
        if self._own_communicator is None:
            if self._num_arrived < len(self.buckets):
                self._run()
        elif self._thread is not None:
            self._thread.join()
            self._thread = None
            if self._error is not None:
                raise self._error

    def reduce(self, take: TakeBlock) -> None:
        """`take(lo, hi, total)` for each block of this rank's slice, bucket by bucket; see `Exchange.reduce`.

        Collective; all must have called `release_all`. Raises PeerLostError as `finish` does, when blocks may have been
        taken.
        """
        if self._thread is None:
            self.finish()
        for number, bucket in enumerate(self.buckets):
            lo, hi = overlap(self.bounds, bucket)
            if lo < hi and not self.has_arrived(number):
                break
            for first in range(lo, hi, BLOCK_ELEMENTS):
                last = min(first + BLOCK_ELEMENTS, hi)
                take(first, last, self._totals[first:last])
        self.finish()

    def has_arrived(self, number: int) -> bool:
        """Wait until all ranks of the node can read the sum of a bucket; False if that will not be.

        Between `release_all` and `finish`, while the exchange goes on in the background. Not collective.
        """
        with self._arrival:
            self._arrival.wait_for(lambda: self._num_arrived > number or self._error is not None)
            return self._num_arrived > number

    def _note_arrived(self, num_buckets: int) -> None:
        with self._arrival:
            self._num_arrived = num_buckets
            self._arrival.notify_all()

    def publish(self, array: Array, offset: int = 0) -> None:
        """Let all ranks of the node see `array`, in which each has written its own slice. Collective."""
        self._communicator.barrier()

    def send_results(self, array: Array, offset: int = 0) -> None:
        """Nothing to do: each node has its own."""

    def close(self) -> None:
        """End what is under way, which others then see as the loss of a rank, and release what it used.

        Not collective.
        """
        if self._own_communicator is None:
            return
        if self._thread is not None:
            self._is_abandoned = True
            self._own_communicator.revoke()
            self.release_all()
            self._thread.join()
            self._thread = None
        # It holds what the thread was in the middle of, this exchange among it.
        self._error = None
        self._own_communicator.close()
        self._own_communicator = None

    def _run_in_background(self) -> None:
        try:
            self._run()
        except BaseException as error:  # for the thread that waits
            with self._arrival:
                self._error = error
                self._arrival.notify_all()
            # Ranks that wait for this one, and not for the one that died, must hear of it, too.
            if isinstance(error, PeerLostError):
                self._used.revoke()

    def _run(self) -> None:
        partials = sums = _landed
        for number, each in enumerate(self._rounds):
            self._released.acquire()
            if self._is_abandoned:
                raise PeerLostError("the exchange of gradients was abandoned")
            if self._has_neighbours:
                self._used.exchange(self._tokens_out, self._tokens_in)
                # All ranks of the node have ended the round before.
                self._note_arrived(max(0, number - 2))
            each.between.sum_away()
            partials_before, partials = partials, self._start(each.partials)
            if number > 0:
                sums_before, sums = sums, self._sum_up(self._rounds[number - 1], partials_before)
                sums_before()
                if not self._has_neighbours:
                    self._note_arrived(number - 1)
            self.num_rounds += 1
        last = self._sum_up(self._rounds[-1], partials)
        sums()
        last()
        if self._has_neighbours:
            self._used.exchange(self._tokens_out, self._tokens_in)
        self._note_arrived(len(self._rounds))

    def _sum_up(self, bucket: _Round, partials: Callable[[], None]) -> Callable[[], None]:
        """Sum a bucket once the partials of the others are here, and begin to send the sums."""
        partials()
        for block in bucket.blocks:
            total_of(block)
        return self._start(bucket.sums)

    def _start(self, wire: _Wire) -> Callable[[], None]:
        """Begin to send and to receive; the function that it returns waits until all is there."""
        wire.pack()
        arrive = self._used.start_exchange(wire.sends, wire.receives)

        def land() -> None:
            arrive()
            wire.unpack()

        return land


def _landed() -> None:
    """There is nothing on its way."""


class _Wire:
    """Messages of float32 arrays as they are sent: as they are, or as bfloat16, which they have been rounded to."""

    def __init__(self, sends: Sequence[Message], receives: Sequence[Message], *, is_packed: bool) -> None:
        self.sends, self.receives = list(sends), list(receives)
        self._outgoing: list[tuple[Array, Array]] = []
        self._incoming: list[tuple[Array, Array]] = []
        if is_packed:
            self._outgoing = [(array, allocate_apart(array.size, np.uint16)) for _, array in sends]
            self._incoming = [(array, allocate_apart(array.size, np.uint16)) for _, array in receives]
            self.sends = [(rank, half) for (rank, _), (_, half) in zip(sends, self._outgoing, strict=True)]
            self.receives = [(rank, half) for (rank, _), (_, half) in zip(receives, self._incoming, strict=True)]

    def pack(self) -> None:
        for array, halves in self._outgoing:
            pack(array, halves)

    def unpack(self) -> None:
        for array, halves in self._incoming:
            unpack(halves, array)


class _Round:
    """What one rank does for one bucket: its messages, the sums of its piece, and what is sent of these."""

    def __init__(
        self,
        communicator: Communicator,
        nodes: Nodes,
        num_shards: int,
        holdings: Holdings,
        totals: Array,
        bucket: Bounds,
        num_rounded: int,
    ) -> None:
        pieces = split_range(bucket, communicator.size)
        lo, hi = pieces[communicator.rank]
        number = nodes.node_of_rank[communicator.rank]
        self.between = BetweenNodes(
            communicator,
            nodes,
            pieces,
            holdings.tree_nodes,
            holdings.vectors,
            num_shards,
            holdings.dtype,
            bucket,
            num_rounded,
        )
        walked = [(node, vector, 0) for node, vector in zip(holdings.tree_nodes[number], holdings.vectors, strict=True)]
        walked += [(node, vector, lo) for node, vector in self.between.incoming]
        walked.sort(key=lambda entry: entry[0])
        walk = Walk([node for node, _, _ in walked], num_shards, hi - lo, holdings.dtype, num_rounded)
        planned = walk.plan([(vector, origin) for _, vector, origin in walked], [(lo, hi)])
        self.blocks: list[PlannedBlock] = [block.into(totals) for block in planned]
        is_packed = bucket[1] <= num_rounded
        self.partials = _Wire(self.between.sends, self.between.receives, is_packed=is_packed)
        self.sums = _Wire(*self.between.results(totals), is_packed=is_packed)
