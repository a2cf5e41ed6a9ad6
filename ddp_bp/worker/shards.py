"""The compute part of a step: forward and backward of each shard that this rank owns, and their sums by carry.

Shards are computed one after another, unless the model sums over all shards on the way (SyncBatchNorm): then they
advance side by side, see `lockstep`. Knows no optimizer, and of the other ranks no more than the agreement's row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ddp_bp.data.batches import Batches
from ddp_bp.engine.buffers import Buffers
from ddp_bp.engine.flat import FlatParameters
from ddp_bp.engine.random import random_stream
from ddp_bp.engine.shard_group import shard_group
from ddp_bp.errors import InputError
from ddp_bp.parallel.agreement import Agreement
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.membership import shard_run
from ddp_bp.parallel.tree import maximal_nodes, merge_counts
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
    ) -> None:
        """`stack`: vectors (P + B,) for this rank's partials, the lowest ones for those that are left in the end."""
        self._objective, self._batches = objective, batches
        self._parameters, self._buffers = parameters, buffers
        self._agreement, self._clock = agreement, clock
        num_shards = batches.plan.num_shards
        self._shards = shard_run(num_shards, communicator.size, communicator.rank)
        self._merges = merge_counts([(shard, shard + 1) for shard in self._shards], num_shards)
        self._lockstep = None
        self._partials = [Partial(vector, parameters.size) for vector in stack]
        if num_shards > 1 and any(module.sums_over_shards for module in objective.model.modules()):
            self._lockstep = LockStep(communicator, num_shards, parameters, buffers, clock)
            # A vector for each shard at once; the sum over a tree node is left in that of its first shard.
            firsts = [first for first, _ in maximal_nodes(self._shards.start, self._shards.stop, num_shards)]
            kept = dict(zip(firsts, self._partials, strict=False))
            self._partials = [
                kept.get(shard) or Partial(np.zeros_like(stack[0]), parameters.size) for shard in self._shards
            ]
        self.num_own_samples = 0
        """Samples that this rank computed in its last step."""

    def compute(self, step: int) -> None:
        """Leave this rank's partials, one per maximal tree node of its shards, in the lowest vectors of the stack.

        What is known of each shard (loss, count, samples) goes into the agreement's row. If the model sums over shards,
        this is collective, also where it raises, and the partials mean nothing where another rank has raised.
        """
        self._agreement.reset()
        self.num_own_samples = 0
        if self._lockstep is None:
            with shard_group(_NoGroup()) if self._batches.plan.num_shards > 1 else nullcontext():
                self._carry(lambda index, place: self._compute_shard(step, index, self._partials[place]))
            return
        filled, empty = {}, []
        for index, shard in enumerate(self._shards):
            _, lo, hi = self._batches.plan.shard_range(step, shard)
            function = partial(self._compute_shard, step, index, self._partials[index])
            if lo == hi:
                empty.append(function)
            else:
                filled[index] = function
        if self._lockstep.run(filled, empty):
            self._carry(lambda index, _: self._partials[index])

    def _carry(self, computed: Callable[[int, int], Partial]) -> None:
        """Sums the shards as a binary counter does; `computed(index, place)`: the partial of one, at `place`."""
        stack: list[Array] = []
        for index, num_merges in enumerate(self._merges):
            stack.append(computed(index, len(stack)).vector)
            for _ in range(num_merges):
                right = stack.pop()
                stack[-1] += right
            self._clock.lap(Phase.EXCHANGE)

    def _compute_shard(self, step: int, index: int, into: Partial, turn: Turn | None = None) -> Partial:
        """Forward and backward of one shard. `turn`: where it can ask for sums over all shards."""
        shard = self._shards[index]
        batch = self._batches.load(step, shard)
        self._clock.lap(Phase.DATA_WAIT)
        self.num_own_samples += batch.num_samples
        self._parameters.bind_gradient(into.gradient)
        self._buffers.begin()
        loss = weight = correct = 0.0
        if batch.num_samples:
            with random_stream(self._batches.plan.seed, step, shard):
                total = self._objective.train(batch)
            loss, weight, correct = total.loss.item(), total.weight, total.correct
            self._clock.lap(Phase.FORWARD)
            if turn is not None:
                turn.phase = Phase.BACKWARD
            total.loss.backward()
        self._parameters.finish_gradient()
        self._buffers.moves(into.moves)
        self._clock.lap(Phase.BACKWARD)
        self._agreement.report_shard(
            index, loss, weight, correct, batch.ids_digest, finite=np.isfinite(loss) and _is_finite(into.vector)
        )
        return into


def _is_finite(vector: Array) -> bool:
    # One product reads the vector once; only if it overflows are the elements looked at one by one.
    return bool(np.isfinite(np.dot(vector, vector)) or np.isfinite(vector).all())
