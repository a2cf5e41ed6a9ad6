"""One training step, whole: compute, agree, reduce and update. This is the page to read first.

A rank computes its shards and sums their gradients by carry, as a binary counter does, so that it holds one partial per
maximal node of the reduction tree (`shards`). Between nodes, buckets of them may be exchanged while the last backward
pass goes on (`parallel.bucket_exchange`). All ranks agree that everyone is ready (`parallel.agreement`). Then each
rank sums its slice of all partials along the tree (`parallel.exchange`), divides by the true number of samples, and
lets the optimizer update that slice (`update`). No sum depends on who computed what, so the bits are the same for any
number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ddp_bp.data import ShardPlan
from ddp_bp.errors import DisagreementError, PeerLostError
from ddp_bp.parallel.agreement import Agreement, Status, Verdict
from ddp_bp.parallel.bucket_exchange import BucketExchange
from ddp_bp.parallel.exchange import Exchange
from ddp_bp.parallel.journal import Journal, Stage
from ddp_bp.worker.audit import Audit
from ddp_bp.worker.comparison import Comparison
from ddp_bp.worker.failures import raise_together
from ddp_bp.worker.phases import Phase, PhaseClock
from ddp_bp.worker.shards import ShardComputation
from ddp_bp.worker.update import Update


@dataclass(frozen=True)
class StepResult:
    """What all ranks know after a committed step: sums over the global batch, and the requests that were agreed on.

    `nonfinite_shards`: those whose loss or gradient was not finite; if there are any, the step has changed nothing.
    `previous_gradient_norm` is that of the step before, None after the first step of a start or a skipped one. It is
    for people only: it is summed over the ranks' slices, so that its last bits depend on how many there are.
    """

    loss: float
    weight: float
    correct: float
    requests: int
    nonfinite_shards: tuple[int, ...]
    shard_digests: tuple[int, ...]
    shard_results: tuple[int, ...]
    owners: tuple[int, ...]
    previous_gradient_norm: float | None


class TrainingStep:
    """The step of one rank. Construct and run on all ranks alike."""

    def __init__(
        self,
        *,
        plan: ShardPlan,
        shards: ShardComputation,
        audit: Audit,
        comparison: Comparison,
        exchange: Exchange | BucketExchange,
        update: Update,
        agreement: Agreement,
        journal: Journal,
        clock: PhaseClock,
        on_failure: Callable[[BaseException, int], None],
    ) -> None:
        """`on_failure(error, step)` shows a rank's own error before the others stop."""
        self._plan, self._shards, self._exchange, self._update = plan, shards, exchange, update
        self.audit, self.comparison = audit, comparison
        self._agreement, self._journal, self._clock = agreement, journal, clock
        self._on_failure = on_failure
        self.verdict: Verdict | None = None
        """What was agreed on in the last step that came so far."""

    @property
    def num_own_samples(self) -> int:
        """Samples that this rank computed in its last step."""
        return self._shards.num_own_samples

    def run(self, step: int, requests: int = 0) -> StepResult:
        """Train on step `step`, counted from 0. Collective; `requests` are bits that all ranks shall know of.

        Raises:
            RankFailure: on a rank whose computation raised.
            RemoteError: on the other ranks, then.
            PeerLostError: on some ranks, if one has died; see `recovery`.
            DisagreementError: on all ranks, if they are not at the same step with the same parameters, or one of them
                is found to compute wrongly.
        """
        self._clock.start()
        self._journal.note(step, Stage.COMPUTING)
        self._exchange.begin()
        failure = self._compute(step)
        self._exchange.release_all()
        self._agreement.prepare(
            step,
            status=Status.FAILED if failure else Status.READY,
            requests=requests,
            squared_norm=self._update.squared_norm,
        )
        self._journal.note(step, Stage.READY)
        verdict = self._agreement.conclude()
        self._clock.lap(Phase.RANK_WAIT)
        if verdict.failed_ranks or verdict.nonfinite_shards:
            # Nobody will ask for the sums, but others wait for this rank's part of them.
            self._exchange.finish()
        raise_together(verdict, failure, f"at step {step}")
        try:
            self.audit.compare(step)
            self.comparison.run_if_due(step)
        except DisagreementError:
            self._exchange.finish()
            raise
        self.verdict = verdict
        take(self._update, self._plan, step, verdict)
        self._clock.stop()
        return result_of(verdict)

    def _compute(self, step: int) -> BaseException | None:
        """Compute this rank's shards; returns the error that it met, if any."""
        try:
            if self._shards.compute(step, self.audit.begin(step)):
                self.audit.recompute(step)
        except PeerLostError:
            raise
        except BaseException as error:  # a model that calls sys.exit must not leave the other ranks waiting
            self._on_failure(error, step)
            return error
        return None


def take(update: Update, plan: ShardPlan, step: int, verdict: Verdict) -> None:
    """Take the step that was agreed on, or skip it where something is not finite. Collective."""
    if verdict.nonfinite_shards:
        update.skip_step(step)
        return
    _, step_in_epoch = plan.position(step)
    num_filled_shards = min(plan.num_shards, plan.batch_size_at(step_in_epoch))
    update.take_step(step, verdict.weight, num_filled_shards)


def result_of(verdict: Verdict) -> StepResult:
    """What there is to know after a committed step."""
    return StepResult(
        verdict.loss,
        verdict.weight,
        verdict.correct,
        verdict.requests,
        verdict.nonfinite_shards,
        verdict.shard_digests,
        verdict.shard_results,
        verdict.owners,
        None if math.isnan(verdict.squared_norm) else math.sqrt(verdict.squared_norm),
    )
