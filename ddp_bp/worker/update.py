"""The second half of a step: from the sums over all shards to new parameters, each rank its own slice.

Blocks of the slice go through once, unless something needs the whole gradient before any parameter may move: clipping
by the norm, and optimizers that scale by norms of whole parameters (LARS, LAMB). Then the slice is summed first, the
ranks put their parts of those norms side by side, and every rank adds them up in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from ddp_bp.engine.buffers import Buffers
from ddp_bp.engine.flat import FlatParameters
from ddp_bp.optim import ExponentialMovingAverage, Optimizer
from ddp_bp.optim.block import Block
from ddp_bp.optim.clip import clip_coefficient, clip_value_
from ddp_bp.optim.layerwise import LayerwiseOptimizer
from ddp_bp.optim.optimizer import MakeBlock, Piece, Rule
from ddp_bp.optim.rows import ROW_ELEMENTS, row_square_sums
from ddp_bp.parallel.apart import allocate_apart
from ddp_bp.parallel.bucket_exchange import BucketExchange
from ddp_bp.parallel.communicator import Bounds, Communicator
from ddp_bp.parallel.exchange import Exchange
from ddp_bp.parallel.journal import Begun, Journal, Stage
from ddp_bp.parallel.membership import clip_bounds, overlap
from ddp_bp.parallel.walk import BLOCK_ELEMENTS
from ddp_bp.worker.compression import Compression
from ddp_bp.worker.phases import Phase, PhaseClock
from ddp_bp.worker.redo import MarkedBlock, ResumedBlock, begun_at

Array = npt.NDArray[Any]


class Update:
    """Takes the step for the elements of this rank's slice. Construct and call on all ranks alike."""

    def __init__(
        self,
        *,
        parameters: FlatParameters,
        buffers: Buffers,
        optimizer: Optimizer,
        exchange: Exchange | BucketExchange,
        moves: Array,
        journal: Journal,
        communicator: Communicator,
        clock: PhaseClock,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        average: ExponentialMovingAverage | None = None,
        pending: Sequence[Bounds] | None = None,
        begun: Sequence[Begun] = (),
        compression: Compression | None = None,
    ) -> None:
        """Vectors are (P + B,): parameters, and after them the buffers' moves. `average` follows the parameters.

        moves: (B,), in memory that the ranks of the node share.
        journal: where this rank notes what it changes; see `piece_elements` and `copied_vectors`.
        clip_norm: the largest Euclidean norm of the mean gradient.
        clip_value: the largest absolute value of an element of it.
        pending: which elements have not been updated yet, where another rank has begun the step; all by default.
        begun: which entries of `pending` were being written, and how far.
        compression: what hears that a step has been taken.
        """
        self._parameters, self._buffers = parameters, buffers
        self._optimizer, self._average = optimizer, average
        self._exchange, self._communicator, self._clock = exchange, communicator, clock
        self._clip_norm, self._clip_value = clip_norm, clip_value
        # This rank's parameters, and the moves of buffers that it sums.
        own = np.array(clip_bounds(exchange.bounds, 0, parameters.size), np.int64)
        self._slices = np.empty((communicator.size, 2), np.int64)
        communicator.allgather(own, self._slices)
        self._lo, self._hi = own.tolist()
        self._moves, self._journal = moves, journal
        self._copied = copied_vectors(parameters, optimizer, average)
        self._pending, self._compression = pending, compression
        self.begun = tuple(begun)
        """What had been begun by others when this update was made for the rest of a step."""
        takes_norms = needs_norms(optimizer, clip_norm)
        self._gradient = allocate_apart(self._hi - self._lo, parameters.dtype) if takes_norms else None
        self._pieces: dict[Bounds, list[Piece]] = {}
        self._rules: list[Rule] = []
        self.squared_norm = math.nan
        """This rank's part of the squared norm of the last mean gradient, before clipping."""

    def order_of(self, rank: int) -> list[Bounds]:
        """The pieces [lo, hi) of a rank's slice, in the order in which they are updated."""
        pieces: Sequence[Bounds] = [self._exchange.slices[rank]]
        if self._pending is not None:
            pieces = self._pending
        elif self._gradient is None:
            pieces = self._exchange.order
        overlaps = [overlap(self._exchange.slices[rank], piece) for piece in pieces]
        return [(lo, hi) for lo, hi in overlaps if lo < hi]

    def take_step(self, step: int, weight: float, num_filled_shards: int) -> None:
        """Update parameters, optimizer state, average and buffers. Collective.

        `weight`: the number that the loss is averaged over; `num_filled_shards`: how many shards have samples, and so
        take part in the mean of the buffers.
        """
        scale = 1.0 / weight if weight else 0.0
        counts_norm = self._exchange.is_first_copy
        self.squared_norm = 0.0
        if not isinstance(self._optimizer, LayerwiseOptimizer):
            self._rules = self._optimizer.rules()

        def take(lo: int, hi: int, total: Array) -> None:
            self._clock.lap(Phase.EXCHANGE)
            num_gradient = max(0, min(hi, self._parameters.size) - lo)
            gradient = total
            if num_gradient < hi - lo:
                gradient, moves = total[:num_gradient], total[num_gradient:]
                start = lo + num_gradient - self._parameters.size
                np.divide(moves, max(num_filled_shards, 1), out=self._moves[start : start + moves.size])
            if num_gradient:
                gradient *= scale
                if counts_norm:
                    self.squared_norm += float(gradient.dot(gradient))
                if self._clip_value is not None:
                    clip_value_(gradient, self._clip_value)
                if self._gradient is None:
                    self._update_block(lo, lo + num_gradient, gradient)
                else:
                    self._gradient[lo - self._lo : lo - self._lo + num_gradient] = gradient
            if self._gradient is None:
                self._journal.finish(hi - lo)
            self._clock.lap(Phase.OPTIMIZER)

        self._journal.begin_slice(step)
        self._exchange.reduce(take)
        if self._gradient is not None:
            self._update_slice(self._gradient)
        self._exchange.send_results(self._parameters.data)
        if self._buffers.size:
            self._exchange.send_results(self._moves, self._parameters.size)
        self._journal.note(step, Stage.UPDATED)
        self._communicator.barrier()
        self.commit(step)
        self._clock.lap(Phase.EXCHANGE)

    def commit(self, step: int) -> None:
        """Take note that all slices have been updated. Not collective: nobody else is needed any more."""
        self._optimizer.advance()
        if self._average is not None:
            self._average.advance()
        self._parameters.mark_changed()
        if self._compression is not None:
            self._compression.commit()
        if self._buffers.size:
            self._buffers.commit(self._moves)
        self._journal.note(step, Stage.COMMITTED)

    def skip_step(self, step: int) -> None:
        """Leave everything as it was before the step, the shards' copies of the buffers included. Collective."""
        self.squared_norm = math.nan
        # Nobody goes on before all know, or the death of one that did would leave the others in doubt.
        self._communicator.barrier()
        self.commit_skip(step)

    def commit_skip(self, step: int) -> None:
        """Take note that the step is skipped. Not collective."""
        self._buffers.begin()
        self._journal.note(step, Stage.COMMITTED)

    @contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """Within the block the model has the weights to be evaluated: their average, if it has any. Collective."""
        # Before the first update, as when all steps were skipped, it is of nothing.
        if self._average is None or not self._average.num_updates:
            yield
            return
        average = self._average.state["ema"]
        self._exchange.publish(average)
        with self._parameters.shown(average):
            yield

    def _update_block(self, lo: int, hi: int, gradient: Array) -> None:
        pieces = self._pieces.get((lo, hi))
        if pieces is None:
            # Found once: the blocks of a slice are the same in every step.
            pieces = self._pieces[lo, hi] = self._optimizer.pieces(lo, hi, self._blocks_of(lo))
        if self._journal.copies:
            self._journal.copy_piece(lo, hi, self._copied)
        self._optimizer.update_pieces(pieces, self._rules, gradient)
        if self._average is not None:
            self._average.update(lo, hi)

    def _blocks_of(self, lo: int) -> MakeBlock | None:
        """How the pieces of what begins at `lo` are written; None if nobody would go on with them."""
        begun = begun_at(self.begun, lo)
        if not self._journal.marks and begun is None:
            return None

        def make(first: int, parameters: Array, state: dict[str, Array]) -> Block:
            if self._journal.marks:
                block: Block = MarkedBlock(parameters, state, self._journal, first, first - lo)
            else:
                block = self._optimizer.block(first, parameters, state)
            return block if begun is None else ResumedBlock(block, first, begun)

        return make

    def _update_slice(self, gradient: Array) -> None:
        """The step where it takes norms over all slices first."""
        lo, hi = self._lo, self._hi
        if self._clip_norm is not None:
            gradient *= clip_coefficient(self._norm(gradient), self._clip_norm)
        if isinstance(self._optimizer, LayerwiseOptimizer):
            # What it takes norms of is in the state already, so that its whole slice is one block.
            if self._journal.copies:
                self._journal.copy_piece(lo, hi, self._copied)
            norms = self._layer_norms(self._optimizer, gradient)
            if lo < hi:
                self._optimizer.update(lo, hi, gradient, norms)
                if self._average is not None:
                    self._average.update(lo, hi)
        else:
            for first, last in [(lo, hi)] if self._pending is None else self._pending:
                for start in range(max(first, lo), min(last, hi), BLOCK_ELEMENTS):
                    stop = min(start + BLOCK_ELEMENTS, last, hi)
                    self._update_block(start, stop, gradient[start - lo : stop - lo])
                    self._journal.finish(stop - start)
        self._clock.lap(Phase.OPTIMIZER)

    def _norm(self, gradient: Array) -> float:
        """The Euclidean norm of the gradient of all slices, the same bits for any number of them."""
        edges = -(-self._slices // ROW_ELEMENTS)
        sums = np.zeros(edges.max())
        first, last = edges[self._communicator.rank]
        if first < last:
            sums[first:last] = row_square_sums(gradient, self._lo)
        self._gather(sums, edges)
        return math.sqrt(float(sums.sum()))

    def _layer_norms(self, optimizer: LayerwiseOptimizer, gradient: Array) -> npt.NDArray[np.float64]:
        """Norms of each parameter and of its direction; the direction of this slice is left in `gradient`."""
        edges = np.array([optimizer.partial_bounds(lo, hi) for lo, hi in self._slices])
        partials = np.zeros((optimizer.num_partials, 2))
        first, last = edges[self._communicator.rank]
        if first < last:
            partials[first:last] = optimizer.norm_partials(self._lo, self._hi, gradient)
        self._gather(partials.reshape(-1), 2 * edges)
        return optimizer.norms(partials)

    def _gather(self, values: npt.NDArray[np.float64], edges: npt.NDArray[Any]) -> None:
        """Complete `values` in place, of which rank r has written `edges[r]` = first, last. Collective."""
        self._clock.lap(Phase.OPTIMIZER)
        if self._communicator.size > 1:
            first, last = edges[self._communicator.rank]
            own = np.zeros(int((edges[:, 1] - edges[:, 0]).max()))
            own[: last - first] = values[first:last]
            table = np.empty((self._communicator.size, own.size))
            self._communicator.allgather(own, table)
            for row, (start, stop) in zip(table, edges, strict=True):
                values[start:stop] = row[: stop - start]
        self._clock.lap(Phase.EXCHANGE)


def needs_norms(optimizer: Optimizer, clip_norm: float | None) -> bool:
    """Whether the whole gradient must be known before any parameter may move."""
    return clip_norm is not None or isinstance(optimizer, LayerwiseOptimizer)


def piece_elements(optimizer: Optimizer, slice_elements: int) -> int:
    """How many elements of a slice are changed at once, and so must be mended together."""
    return slice_elements if restores_slices(optimizer) else min(BLOCK_ELEMENTS, slice_elements)


def restores_slices(optimizer: Optimizer) -> bool:
    """Whether a step that was begun can only be taken again from its beginning, on all slices."""
    return isinstance(optimizer, LayerwiseOptimizer)


def copied_vectors(
    parameters: FlatParameters, optimizer: Optimizer, average: ExponentialMovingAverage | None
) -> list[Array]:
    """The vectors (P,) of which a piece is copied before it is changed in place; none if writes can be made again."""
    if optimizer.can_resume and average is None:
        return []
    return [parameters.data, *optimizer.state.values(), *(average.state.values() if average else ())]
