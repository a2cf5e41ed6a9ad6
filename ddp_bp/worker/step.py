"""One training step, whole: compute, agree, reduce and update. This is the page to read first.

A rank computes its shards one after another and sums their gradients by carry, as a binary counter does, so that it
holds one partial per maximal node of the reduction tree. All ranks agree that everyone is ready. Then each rank sums
its slice of all partials along the tree, divides by the true number of samples, and lets the optimizer update that
slice. No sum depends on who computed what, so the bits are the same for any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ddp_bp.data.batches import Batches
from ddp_bp.engine.flat import FlatParameters
from ddp_bp.engine.random import random_stream
from ddp_bp.optim import Optimizer
from ddp_bp.parallel.agreement import Agreement, Status, Verdict
from ddp_bp.parallel.exchange import Exchange
from ddp_bp.parallel.tree import merge_counts, stack_depth
from ddp_bp.worker.failures import NonFiniteError, raise_together
from ddp_bp.worker.objective import Objective
from ddp_bp.worker.phases import Phase, PhaseClock


@dataclass(frozen=True)
class StepResult:
    """What all ranks know after a committed step: sums over the global batch, and the requests that were agreed on.

    `previous_gradient_norm` is that of the step before, None after the first step of a start. It is for people only:
    it is summed over the ranks' slices, so that its last bits depend on how many there are.
    """

    loss: float
    weight: float
    correct: float
    requests: int
    shard_digests: npt.NDArray[np.uint64]
    previous_gradient_norm: float | None


class TrainingStep:
    """The step of one rank. Construct and run on all ranks alike."""

    def __init__(
        self,
        *,
        objective: Objective,
        batches: Batches,
        shards: range,
        parameters: FlatParameters,
        optimizer: Optimizer,
        agreement: Agreement,
        exchange: Exchange,
        clock: PhaseClock,
        on_failure: Callable[[BaseException, int], None],
    ) -> None:
        """`shards` is this rank's run; `on_failure(error, step)` shows a rank's own error before the others stop."""
        self._objective, self._batches, self._shards = objective, batches, shards
        self._parameters, self._optimizer = parameters, optimizer
        self._agreement, self._exchange = agreement, exchange
        self._clock, self._on_failure = clock, on_failure
        num_shards = batches.plan.num_shards
        self._merges = merge_counts([(shard, shard + 1) for shard in shards], num_shards)
        # Lazily mapped zeros: memory that a shallow stack does not reach is never touched.
        self._buffers = [np.zeros(parameters.size, parameters.dtype) for _ in range(stack_depth(self._merges))]
        self._squared_norm = math.nan
        self.num_own_samples = 0
        """Samples that this rank computed in its last step."""

    def run(self, step: int, requests: int = 0) -> StepResult:
        """Train on step `step`, counted from 0. Collective; `requests` are bits that all ranks shall know of.

        Raises:
            RankFailure: on a rank whose computation raised.
            RemoteError: on the other ranks, then.
            NonFiniteError: on all ranks, if a loss or gradient is not finite. The state is that before the step.
            DisagreementError: on all ranks, if they are not at the same step with the same parameters.
        """
        self._clock.start()
        partials, failure = self._compute(step)
        verdict = self._agreement.agree(
            step,
            status=Status.FAILED if failure else Status.READY,
            requests=requests,
            squared_norm=self._squared_norm,
        )
        self._clock.lap(Phase.RANK_WAIT)
        raise_together(verdict, failure, f"at step {step}")
        self._refuse_nonfinite(step, verdict)
        self._reduce_and_update(partials, verdict.weight)
        self._clock.stop()
        return StepResult(
            verdict.loss,
            verdict.weight,
            verdict.correct,
            verdict.requests,
            verdict.shard_digests,
            None if math.isnan(verdict.squared_norm) else math.sqrt(verdict.squared_norm),
        )

    def _compute(self, step: int) -> tuple[list[npt.NDArray[np.floating]], BaseException | None]:
        """The gradient partials of this rank's shards, from left to right; or the error that this rank met."""
        stack: list[npt.NDArray[np.floating]] = []
        self._agreement.reset()
        self.num_own_samples = 0
        try:
            for index, (shard, num_merges) in enumerate(zip(self._shards, self._merges, strict=True)):
                stack.append(self._compute_shard(step, shard, index, self._buffers[len(stack)]))
                for _ in range(num_merges):
                    right = stack.pop()
                    stack[-1] += right
                self._clock.lap(Phase.EXCHANGE)
        except BaseException as error:  # a model that calls sys.exit must not leave the other ranks waiting
            self._on_failure(error, step)
            return stack, error
        return stack, None

    def _compute_shard(
        self, step: int, shard: int, index: int, buffer: npt.NDArray[np.floating]
    ) -> npt.NDArray[np.floating]:
        """Forward and backward of one shard, its gradient (P,) written to `buffer`."""
        batch = self._batches.load(step, shard)
        self._clock.lap(Phase.DATA_WAIT)
        self.num_own_samples += batch.num_samples
        self._parameters.bind_gradient(buffer)
        loss = weight = correct = 0.0
        if batch.num_samples:
            with random_stream(self._batches.plan.seed, step, shard):
                total = self._objective.train(batch)
            loss, weight, correct = total.loss.item(), total.weight, total.correct
            self._clock.lap(Phase.FORWARD)
            total.loss.backward()
        gradient = self._parameters.finish_gradient()
        self._clock.lap(Phase.BACKWARD)
        self._agreement.report_shard(
            index, loss, weight, correct, batch.ids_digest, finite=np.isfinite(loss) and _is_finite(gradient)
        )
        return gradient

    def _refuse_nonfinite(self, step: int, verdict: Verdict) -> None:
        if verdict.nonfinite_shards:
            shard = verdict.nonfinite_shards[0]
            ids = self._batches.plan.shard_ids(step, shard)
            raise NonFiniteError(
                f"step {step}, shard {shard} (sample ids {ids[:8].tolist()}{'...' if len(ids) > 8 else ''}): the loss "
                f"({verdict.shard_losses[shard]:g} over the shard) or its gradient is not finite. The parameters of "
                "before the step are intact; lower optimizer.lr, or look at these samples"
            )

    def _reduce_and_update(self, partials: list[npt.NDArray[np.floating]], weight: float) -> None:
        scale = 1.0 / weight if weight else 0.0
        squared_norm = 0.0

        def update(lo: int, hi: int, gradient: npt.NDArray[np.floating]) -> None:
            nonlocal squared_norm
            self._clock.lap(Phase.EXCHANGE)
            gradient *= scale
            squared_norm += float(np.dot(gradient, gradient))
            self._optimizer.update(lo, hi, gradient)
            self._clock.lap(Phase.OPTIMIZER)

        self._exchange.reduce_and_update(partials, update, self._parameters.data)
        self._optimizer.advance()
        self._parameters.mark_changed()
        self._squared_norm = squared_norm
        self._clock.lap(Phase.EXCHANGE)


def _is_finite(gradient: npt.NDArray[np.floating]) -> bool:
    # One product reads the vector once; only if it overflows are the elements looked at one by one.
    return bool(np.isfinite(np.dot(gradient, gradient)) or np.isfinite(gradient).all())
