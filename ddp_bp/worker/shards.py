"""The compute part of a step: forward and backward of each shard that this rank owns, and their sums by carry.

Shards are computed one after another, unless the model sums over all shards on the way (SyncBatchNorm): then they
advance side by side, see `lockstep`. Knows no optimizer, and of the other ranks no more than the agreement's row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddp_bp.data.batches import Batches
from ddp_bp.engine.buffers import Buffers
from ddp_bp.engine.flat import FlatParameters
from ddp_bp.engine.gradient_size import GradientSize
from ddp_bp.engine.random import random_stream
from ddp_bp.engine.shard_group import shard_group
from ddp_bp.errors import DistributedError, InputError
from ddp_bp.parallel.agreement import Agreement
from ddp_bp.parallel.apart import allocate_apart
from ddp_bp.parallel.bfloat16 import add_rounded
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.membership import shard_run
from ddp_bp.parallel.tree import maximal_nodes, merge_counts
from ddp_bp.worker.compression import Compression
from ddp_bp.worker.digest import full_digest, result_digest
from ddp_bp.worker.early import EarlyCarry
from ddp_bp.worker.lockstep import LockStep, Turn
from ddp_bp.worker.objective import Objective
from ddp_bp.worker.phases import Phase, PhaseClock

Array = npt.NDArray[Any]


class Partial:
    """One vector (P + B,): the gradient (P,), and after it by how much the buffers have moved (B,)."""

    def __init__(self, vector: Array, num_parameters: int) -> None:
        self.vector = vector
        self.gradient = vector[:num_parameters]
        self.moves = vector[num_parameters:]


class _NoGroup:
    """Stands for the other shards where they are computed one after another."""

    def total(self, values: Array) -> Array:
        raise InputError(
            "a module of the model calls shard_sum without saying so: set `sums_over_shards = True` in its class, so "
            "that the shards of a batch are computed side by side"
        )


class _KnownGroup:
    """Stands for the other shards where the sums over all of them are known already."""

    def __init__(self, totals: Sequence[Array]) -> None:
        self._totals = iter(totals)

    def total(self, values: Array) -> Array:
        total = next(self._totals, None)
        if total is None or total.shape != values.shape:
            raise DistributedError(
                "a module of the model sums over all shards, and asks for other sums when a shard is computed once "
                "more. What it asks for must depend on nothing but samples, parameters and buffers"
            )
        return total.copy()


class ShardResult(NamedTuple):
    """What is known of a computed shard beside its vector: sums, digests (see `digest`), and whether all is finite, and
    stays so when it is added to that of the other shards."""

    loss: float
    weight: float
    correct: float
    ids_digest: int
    digest: int
    is_finite: bool

    def full_digest(self, vector: Array) -> int:
        """A digest of all that came out. What is not finite is all alike: there are several kinds of NaN."""
        return full_digest(self.loss, self.weight, self.correct, vector) if self.is_finite else 0


class ShardComputation:
    """Computes this rank's shards. Construct and call on all ranks alike."""

    def __init__(
        self,
        objective: Objective,
        batches: Batches,
        parameters: FlatParameters,
        buffers: Buffers,
        agreement: Agreement,
        communicator: Communicator,
        clock: PhaseClock,
        stack: Sequence[Array],
        early: EarlyCarry | None = None,
        compression: Compression | None = None,
    ) -> None:
        """
        Args:
            stack: vectors (P + B,) for this rank's partials, the lowest ones for those that are left in the end.
            early: who exchanges buckets of them before all is complete.
            compression: how gradients and their sums are rounded.
        """
        self._objective, self._batches = objective, batches
        self._parameters, self._buffers = parameters, buffers
        self._agreement, self._clock = agreement, clock
        num_shards = batches.plan.num_shards
        self._shards = shard_run(num_shards, communicator.size, communicator.rank)
        self._merges = merge_counts([(shard, shard + 1) for shard in self._shards], num_shards)
        self._lockstep, self._early, self._compression = None, early, compression
        self._num_rounded = 0 if compression is None else parameters.size
        self._partials = [Partial(vector, parameters.size) for vector in stack]
        if num_shards > 1 and any(module.sums_over_shards for module in objective.model.modules()):
            self._lockstep = LockStep(communicator, num_shards, parameters, buffers, clock)
            # A vector for each shard at once; the sum over a tree node is left in that of its first shard.
            firsts = [first for first, _ in maximal_nodes(self._shards.start, self._shards.stop, num_shards)]
            kept = dict(zip(firsts, self._partials, strict=False))
            self._partials = [
                kept.get(shard) or Partial(allocate_apart(stack[0].shape, stack[0].dtype), parameters.size)
                for shard in self._shards
            ]
        # Rounding changes what backward has written, and so does a shard that is computed by turns with others.
        self.gradient_size = GradientSize(parameters, takes_limits=compression is None and self._lockstep is None)
        """What says after each shard whether its gradient is finite."""
        self.num_own_samples = 0
        """Samples that this rank computed in its last step."""
        self.full_digests: dict[int, int] = {}
        """Of its last step: the full digests of those of its shards for which they were asked for."""
        self._digested: Collection[int] = ()
        self._step = 0
        self._aside: Partial | None = None

    def compute(self, step: int, digested: Collection[int] = ()) -> bool:
        """Leave this rank's partials, one per maximal tree node of its shards, in the lowest vectors of the stack.

        What is known of each shard (loss, count, samples) goes into the agreement's row. If the model sums over shards,
        this is collective, also where it raises, and the partials mean nothing where another rank has raised.

        `digested`: shards of which, where they are this rank's, a digest of every bit is to be kept.

        Returns whether the partials are there: False if another rank has raised.
        """
        self._agreement.reset()
        self._step = step
        self.num_own_samples = 0
        self._digested = digested
        self.full_digests.clear()
        if self._lockstep is None:
            with self._alone():
                self._carry(lambda index, place: self._compute_shard(step, index, self._partials[place]))
            return True
        filled, empty = {}, []
        for index, shard in enumerate(self._shards):
            _, lo, hi = self._batches.plan.shard_range(step, shard)
            function = partial(self._compute_shard, step, index, self._partials[index])
            if lo == hi:
                empty.append(function)
            else:
                filled[index] = function
        if not self._lockstep.run(filled, empty):
            return False
        self._carry(lambda index, _: self._partials[index])
        return True

    def recompute(self, step: int, shard: int) -> tuple[ShardResult, int]:
        """Any one shard once more, beside the partials; its result and the full digest of it. Not collective.

        If the model sums over shards, the sums are those of the last `compute`, which must have been of this step.
        """
        if self._aside is None:
            num_parameters, dtype = self._parameters.size, self._parameters.dtype
            self._aside = Partial(allocate_apart(num_parameters + self._buffers.size, dtype), num_parameters)
        with self._alone() if self._lockstep is None else shard_group(_KnownGroup(self._lockstep.totals)):
            result, _ = self._run_shard(step, shard, self._aside)
        return result, result.full_digest(self._aside.vector)

    def compute_into(self, step: int, shard: int, vector: Array) -> tuple[float, float, float, int, int, int]:
        """Any one shard, its partial into `vector` (P + B,); what an agreement's row says of it. Not collective."""
        with self._alone():
            result, num_samples = self._run_shard(step, shard, Partial(vector, self._parameters.size))
        self.num_own_samples += num_samples
        return (*result[:5], int(not result.is_finite))

    @property
    def needs_all_shards(self) -> bool:
        """Whether no shard can be computed without the others of its step."""
        return self._lockstep is not None

    def _alone(self) -> AbstractContextManager[None]:
        return shard_group(_NoGroup()) if self._batches.plan.num_shards > 1 else nullcontext()

    def _carry(self, computed: Callable[[int, int], Partial]) -> None:
        """Sums the shards as a binary counter does; `computed(index, place)`: the partial of one, at `place`."""
        stack: list[Array] = []
        for index, num_merges in enumerate(self._merges):
            if self._carries_early(index):
                self._carry_early(index, num_merges, stack)
            else:
                stack.append(computed(index, len(stack)).vector)
                for _ in range(num_merges):
                    right = stack.pop()
                    add_rounded(stack[-1], right, self._num_rounded)
            self._clock.lap(Phase.EXCHANGE)

    def _carries_early(self, index: int) -> bool:
        return self._early is not None and self._lockstep is None and index == len(self._shards) - 1

    def _carry_early(self, index: int, num_merges: int, stack: Sequence[Array]) -> None:
        """Compute the last shard, and sum it bucket by bucket."""
        assert self._early is not None
        into = self._partials[len(stack)]
        vectors = [into.vector, *reversed(stack)]

        def prepare(lo: int, hi: int) -> None:
            if hi <= self._num_rounded:
                self._round(self._shards[index], into, lo, hi)

        self._early.begin([(vectors[number + 1], vectors[number]) for number in range(num_merges)], prepare)
        self._compute_shard(self._step, index, into, early=self._early)

    def _can_be_added(self, vector: Array) -> bool:
        """Whether all of it is finite, and so is the sum of as many such vectors as there are shards."""
        most = np.finfo(vector.dtype).max / self._batches.plan.num_shards
        return bool(vector.min() >= -most and vector.max() <= most)

    def _round(self, shard: int, partial: Partial, lo: int, hi: int) -> None:
        if self._compression is not None:
            self._compression.round(shard, partial.gradient, lo, hi)

    def _compute_shard(
        self,
        step: int,
        index: int,
        into: Partial,
        turn: Turn | None = None,
        early: EarlyCarry | None = None,
    ) -> Partial:
        """One shard of this rank's, and what is known of it into the agreement's row; see `_run_shard`."""
        shard = self._shards[index]
        result, num_samples = self._run_shard(step, shard, into, turn, early)
        self.num_own_samples += num_samples
        self._agreement.report_shard(
            index,
            result.loss,
            result.weight,
            result.correct,
            result.ids_digest,
            result.digest,
            finite=result.is_finite,
        )
        if shard in self._digested:
            self.full_digests[shard] = result.full_digest(into.vector)
        return into

    def _run_shard(
        self,
        step: int,
        shard: int,
        into: Partial,
        turn: Turn | None = None,
        early: EarlyCarry | None = None,
    ) -> tuple[ShardResult, int]:
        """Forward and backward of one shard, and its number of samples.

        `turn`: where it can ask for sums over all shards. `early`: who hears of buckets that are complete.
        """
        batch = self._batches.load(step, shard)
        self._clock.lap(Phase.DATA_WAIT)
        self._parameters.bind_gradient(into.gradient)
        self.gradient_size.begin()
        self._buffers.begin()
        loss = weight = correct = 0.0
        if batch.num_samples:
            with random_stream(self._batches.plan.seed, step, shard):
                total = self._objective.train(batch)
            loss, weight, correct = total.loss.item(), total.weight, total.correct
            self._clock.lap(Phase.FORWARD)
            if turn is not None:
                turn.phase = Phase.BACKWARD
            with self._parameters.reporting(early.report) if early is not None else nullcontext():
                total.loss.backward()
        self._parameters.finish_gradient()
        self._buffers.moves(into.moves)
        if early is not None:
            early.finish()
        else:
            self._round(shard, into, 0, self._num_rounded)
        self._clock.lap(Phase.BACKWARD)
        squared_size = self.gradient_size.squared()
        if into.moves.size:
            squared_size += float(into.moves.dot(into.moves))
        # Only if that is too large are the elements looked at one by one.
        is_finite = math.isfinite(loss) and (math.isfinite(squared_size) or self._can_be_added(into.vector))
        digest = result_digest(loss, squared_size)
        return ShardResult(loss, weight, correct, batch.ids_digest, digest, is_finite), batch.num_samples
