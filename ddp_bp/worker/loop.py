"""The loop around the step: what happens between two steps, in the same order on every rank.

Whatever all ranks must do together (evaluate, checkpoint, stop) follows from the step number or from a request bit
that the step's agreement carried, never from what one rank happens to have received.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntFlag

from ddp_bp.parallel.communicator import Communicator
from ddp_bp.wire.messages import Acknowledged, CheckpointDone, Stop, TakeCheckpoint, Welcome
from ddp_bp.worker.assemble import Job
from ddp_bp.worker.checkpointing import Checkpointing
from ddp_bp.worker.comparison import Comparison
from ddp_bp.worker.evaluation import Evaluation
from ddp_bp.worker.failures import together, warn
from ddp_bp.worker.ledger import Ledger
from ddp_bp.worker.link import CoordinatorLink
from ddp_bp.worker.nonfinite import NonFiniteError, SkipLimit
from ddp_bp.worker.progress import Progress
from ddp_bp.worker.reporter import Reporter
from ddp_bp.worker.step import StepResult, TrainingStep


class Request(IntFlag):
    """What a rank asks of all ranks in an agreement."""

    STOP_BY_SIGINT = 1
    STOP_BY_SIGTERM = 2
    CHECKPOINT = 4
    CHECKPOINT_IN_FLIGHT = 8
    STOP_BY_SIGUSR1 = 16


STOP_REQUESTS = {
    "SIGINT": Request.STOP_BY_SIGINT,
    "user": Request.STOP_BY_SIGINT,
    "SIGTERM": Request.STOP_BY_SIGTERM,
    "SIGUSR1": Request.STOP_BY_SIGUSR1,
}
_STOPS = Request.STOP_BY_SIGINT | Request.STOP_BY_SIGTERM | Request.STOP_BY_SIGUSR1


@dataclass(frozen=True)
class Outcome:
    """How the loop ended: at the last step, or by a request to stop. `seconds` is the time spent in it."""

    stopped_by: Request | None
    seconds: float
    num_samples: int


class TrainingLoop:
    """Runs the steps that are left. Construct and run on all ranks alike."""

    def __init__(
        self,
        *,
        job: Job,
        step: TrainingStep,
        evaluation: Evaluation | None,
        comparison: Comparison,
        checkpointing: Checkpointing,
        progress: Progress,
        ledger: Ledger,
        reporter: Reporter,
        link: CoordinatorLink,
        communicator: Communicator,
        checkpoint_every_steps: int,
        announce: Callable[[str], None],
    ) -> None:
        """`announce` is given one line for people at the end of every epoch."""
        self._job, self._step, self._evaluation = job, step, evaluation
        self._comparison, self._checkpointing = comparison, checkpointing
        self._progress, self._ledger = progress, ledger
        self._skip_limit = SkipLimit(job.recipe.fault.nonfinite_limit, job.plan, progress)
        self._reporter, self._link, self._communicator = reporter, link, communicator
        self._checkpoint_every_steps, self._announce = checkpoint_every_steps, announce
        self._stop = Request(0)
        self._wanted_checkpoint: str | None = None
        self._checkpoint_owed = False
        self._gradient_norm: float | None = None

    def request_stop(self, signal_name: str) -> None:
        """Ask for an end at the next step that all ranks agree on. Safe to call from a signal handler."""
        self._stop = STOP_REQUESTS[signal_name]

    def run(self) -> Outcome:
        """Train until the last step or a request to stop, then save a checkpoint. Collective.

        Raises:
            NonFiniteError: too many steps in a row had to be skipped. A checkpoint has been saved.
            DisagreementError: ranks differ in what they hold or compute. None has been saved since.
        """
        began, samples_before = time.perf_counter(), self._progress.samples
        self._reporter.send("train", self._epoch(), self._scalars())
        stopped_by: Request | None = None
        while stopped_by is None and self._progress.step < self._job.total_steps:
            self._job.schedule.apply(self._progress.step)
            result = self._step.run(self._progress.step, self._requests())
            self._check_finite(result)
            self._commit(result)
            requests = Request(result.requests)
            if self._ends_epoch():
                self._end_epoch()
            if self._checkpoint_is_due(requests):
                answers, self._wanted_checkpoint = self._wanted_checkpoint or "", None
                # No checkpoint of what ranks do not agree on. And the ledger's lines of these steps must be on the disk
                # before the checkpoint that contains them.
                self._comparison.run(f"at the checkpoint of step {self._progress.step}")
                self._reporter.send("train", self._epoch(), self._scalars())
                self._checkpointing.begin(f"step-{self._progress.step}", answers)
            self._reporter.send_if_due("train", self._epoch(), self._scalars())
            stopped_by = requests & _STOPS or None
        if self._progress.step >= self._job.total_steps:
            # A stop in the very last step has cut nothing short.
            stopped_by = None
            self._evaluate()
        seconds = time.perf_counter() - began
        self._save()
        self._reporter.send("finish", self._epoch(), self._scalars())
        return Outcome(stopped_by, seconds, self._progress.samples - samples_before)

    def _save(self) -> None:
        """Save the last checkpoint of this start. Collective."""
        self._comparison.run(f"at the checkpoint of step {self._progress.step}")
        self._reporter.send("checkpoint", self._epoch(), self._scalars())
        self._requests()
        together(self._communicator, lambda: self._checkpointing.save_now("final", self._wanted_checkpoint or ""))

    def _requests(self) -> int:
        """What this rank has to ask of all, from the commands that have arrived and its own signals."""
        for message in self._link.take():
            match message:
                case Stop(reason=reason):
                    self.request_stop(reason)
                case TakeCheckpoint(request_id=request_id):
                    self._wanted_checkpoint = request_id
                case CheckpointDone():
                    self._checkpointing.done(message)
                case Acknowledged(of="ledger", step=int(step)):
                    self._reporter.ledger_is_durable(step)
                case Welcome():
                    self._reporter.send_ledger_again()
                case _:
                    pass
        requests = self._stop
        if self._wanted_checkpoint is not None:
            requests |= Request.CHECKPOINT
        if self._checkpointing.in_flight:
            requests |= Request.CHECKPOINT_IN_FLIGHT
        return int(requests)

    def _check_finite(self, result: StepResult) -> None:
        """Warn of a step that had to be skipped, or end training with a checkpoint if it is one too many."""
        try:
            warning = self._skip_limit.check(result.nonfinite_shards)
        except NonFiniteError:
            self._save()
            raise
        if warning is not None and self._communicator.rank == 0:
            warn(warning)

    def _commit(self, result: StepResult) -> None:
        epoch, step_in_epoch = self._job.plan.position(self._progress.step)
        num_samples = self._job.plan.batch_size_at(step_in_epoch)
        skipped = bool(result.nonfinite_shards)
        self._ledger.commit(
            self._progress.step,
            epoch,
            num_samples,
            result.shard_digests,
            result.shard_results,
            result.owners,
            skipped=skipped,
        )
        if skipped:
            self._progress.skip(num_samples, result.nonfinite_shards[0], first_in_epoch=step_in_epoch == 0)
        else:
            self._progress.commit(
                result.loss,
                result.weight,
                result.correct,
                num_samples,
                self._job.objective.num_answers(num_samples, result.weight),
                first_in_epoch=step_in_epoch == 0,
            )
        self._gradient_norm = result.previous_gradient_norm
        own_samples = num_samples if self._communicator.rank == 0 else self._step.num_own_samples
        self._reporter.count(own_samples, skipped=skipped)

    def _checkpoint_is_due(self, requests: Request) -> bool:
        every = self._checkpoint_every_steps
        self._checkpoint_owed |= bool(requests & Request.CHECKPOINT) or (every > 0 and self._progress.step % every == 0)
        if not self._checkpoint_owed or requests & Request.CHECKPOINT_IN_FLIGHT:
            return False
        self._checkpoint_owed = False
        return True

    def _ends_epoch(self) -> bool:
        return self._progress.step % self._job.plan.steps_per_epoch == 0

    def _end_epoch(self) -> None:
        every = self._job.recipe.train.eval_every_epochs
        epochs = self._progress.step // self._job.plan.steps_per_epoch
        if every and epochs % every == 0:
            self._evaluate()
            # Not where training ends within an epoch: if it is prolonged, that evaluation has not been.
            if self._progress.eval_loss is not None:
                self._job.schedule.evaluated(self._progress.eval_loss)
                self._progress.schedule = self._job.schedule.state()
        self._announce(self._line(epochs))

    def _evaluate(self) -> None:
        """Evaluate, unless this very step has been evaluated or there is nothing to evaluate on."""
        if self._evaluation is None or self._progress.evaluated_at_step == self._progress.step:
            return
        self._reporter.send_if_due("evaluate", self._epoch(), self._scalars())
        result = self._evaluation.run(self._progress.step, has_accuracy=self._job.is_classification)
        if not math.isfinite(result.loss):
            # Outputs that are not numbers have no largest one, so that no answer among them is right.
            result = replace(result, accuracy=None)
            if self._communicator.rank == 0:
                warn(f"the evaluation loss after step {self._progress.step} is {result.loss}")
        self._progress.evaluated(result)
        self._reporter.evaluation(result, self._epoch())

    def _epoch(self) -> int:
        return self._progress.step // self._job.plan.steps_per_epoch

    def _scalars(self) -> dict[str, float]:
        values = {
            "train_loss": self._progress.last_train_loss,
            "train_accuracy": self._progress.train_accuracy if self._job.is_classification else None,
            "learning_rate": self._job.optimizer.lr,
            "gradient_norm": self._gradient_norm,
        }
        return {name: value for name, value in values.items() if value is not None}

    def _line(self, epochs: int) -> str:
        progress = self._progress
        parts = [f"epoch {epochs}/{self._job.recipe.train.epochs}", f"step {progress.step}"]
        if progress.last_train_loss is not None:
            parts.append(f"loss {progress.last_train_loss:.4f}")
        if progress.eval_loss is not None:
            parts.append(f"eval loss {progress.eval_loss:.4f}")
        if progress.eval_accuracy is not None:
            parts.append(f"eval accuracy {progress.eval_accuracy:.2%}")
        return "  ".join(parts)
