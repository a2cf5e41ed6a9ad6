"""The loop around the step: what happens between two steps, in the same order on every rank.

Whatever all ranks must do together (evaluate, checkpoint, stop) follows from the step number or from a request bit
that the step's agreement carried, never from what one rank happens to have received. When a rank has died, `run` ends
with PeerLostError wherever it is; those that are left `go_on`, and call `run` again: what follows a step is done once
more by all if one of them had not come to its end, and leaves the same as if it had been done once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import msgspec

from ddp_bp.errors import DisagreementError, NodeLostError
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.worker.assemble import Job
from ddp_bp.worker.checkpointing import Checkpointing
from ddp_bp.worker.evaluation import Evaluation
from ddp_bp.worker.failures import together, warn
from ddp_bp.worker.ledger import Ledger
from ddp_bp.worker.link import CoordinatorLink
from ddp_bp.worker.nonfinite import NonFiniteError, SkipLimit
from ddp_bp.worker.progress import Progress
from ddp_bp.worker.reporter import Reporter
from ddp_bp.worker.requests import STOPS, Request
from ddp_bp.worker.standing import Briefing, Standing
from ddp_bp.worker.step import StepResult, TrainingStep
from ddp_bp.worker.wishes import Wishes

_MOST_TRIES = 13
"""How often the last checkpoint is begun, if the disk is full, or the coordinator loses sight of a rank meanwhile."""
_PAUSE_SECONDS = 5.0
"""How long a disk is given, each time, to have room again."""


@dataclass(frozen=True)
class Outcome:
    """How the loop ended: at the last step, or by a request to stop. `seconds` is the time spent in it."""

    stopped_by: Request | None
    seconds: float
    num_samples: int


@dataclass(frozen=True)
class Equipment:
    """What the loop works with as long as the ranks stay the same.

    `brief`: gives those that have just joined what rank `root` has trained, as far as they lack it; collective.
    """

    step: TrainingStep
    evaluation: Evaluation | None
    checkpointing: Checkpointing
    communicator: Communicator
    brief: Callable[[int], None]


class TrainingLoop:
    """Runs the steps that are left. Construct and run on all ranks alike."""

    def __init__(
        self,
        *,
        job: Job,
        equipment: Equipment | None,
        progress: Progress,
        ledger: Ledger,
        reporter: Reporter,
        link: CoordinatorLink,
        checkpoint_every_steps: int,
        announce: Callable[[str], None],
    ) -> None:
        """`announce` is given one line for people at the end of every epoch.

        `equipment`: None on a rank that waits to take another's place, which must `go_on` before it can `run`.
        """
        self._job = job
        self._is_new = equipment is None
        if equipment is not None:
            self._equip(equipment)
        self._progress, self._ledger = progress, ledger
        self._skip_limit = SkipLimit(job.recipe.fault.nonfinite_limit, job.plan, progress)
        self._reporter = reporter
        self._checkpoint_every_steps, self._announce = checkpoint_every_steps, announce
        self._wishes = Wishes(link, reporter)
        self._checkpoint_owed = False
        self._gradient_norm: float | None = None
        self._began: float | None = None
        self._samples_before = progress.samples
        self._followed_up = True
        self._requests_agreed = Request(0)
        self._schedule_told_at: int | None = None
        self._fatal: NonFiniteError | None = None
        link.on_return(self._coordinator_is_back)

    def _equip(self, equipment: Equipment) -> None:
        self._step, self._evaluation = equipment.step, equipment.evaluation
        self._comparison, self._checkpointing = equipment.step.comparison, equipment.checkpointing
        self._communicator, self._brief = equipment.communicator, equipment.brief

    def _coordinator_is_back(self) -> None:
        self._reporter.send_again()
        self._wishes.coordinator_is_back()
        if not self._is_new:
            self._checkpointing.send_again()

    def request_stop(self, signal_name: str) -> None:
        """Ask for an end at the next step that all ranks agree on. Safe to call from a signal handler."""
        self._wishes.stop(signal_name)

    def run(self) -> Outcome:
        """Train until the last step or a request to stop, then save a checkpoint. Collective.

        Raises:
            NonFiniteError: too many steps in a row had to be skipped. A checkpoint has been saved.
            DisagreementError: ranks differ in what they hold or compute. None has been saved since.
            PeerLostError: on some ranks at least, if one has died; see `go_on`.
        """
        self._began = self._began or time.perf_counter()
        self._reporter.send("train", self._epoch(), self._scalars())
        while not self._is_over():
            if self._followed_up:
                self._job.schedule.apply(self._progress.step)
                self._take(self._step.run(self._progress.step, int(self._wishes.take_in(self._checkpointing))))
            if self._fatal is None:
                self._follow_up()
        if self._fatal is not None:
            self._save()
            raise self._fatal
        stopped_by: Request | None = self._requests_agreed & STOPS or None
        if self._progress.step >= self._job.total_steps:
            # A stop in the very last step has cut nothing short.
            stopped_by = None
            self._evaluate()
        seconds = time.perf_counter() - self._began
        self._save()
        self._reporter.send("finish", self._epoch(), self._scalars())
        return Outcome(stopped_by, seconds, self._progress.samples - self._samples_before)

    def go_on(self, equipment: Equipment, result: StepResult | None) -> None:
        """Go on with the ranks that are left, after a recovery; then call `run` again. Collective among them.

        `result`: of the step that was finished without the dead ranks, on a rank that had not committed it.

        Raises:
            NodeLostError: on all ranks, if all of them have just joined.
        """
        # Should another rank die in the middle of this, it is owed all the same.
        self._checkpoint_owed = self._checkpoint_owed or (not self._is_new and self._checkpointing.in_flight)
        self._equip(equipment)
        if result is not None:
            self._take(result)
        has_evaluated = self._progress.evaluated_at_step == self._progress.step
        pending = None if self._followed_up else int(self._requests_agreed)
        own = Standing(self._progress.step, pending, has_evaluated, self._checkpoint_owed, self._is_new)
        said_by_rank = [
            msgspec.msgpack.decode(said, type=Standing)
            for said in self._communicator.allgather_bytes(msgspec.msgpack.encode(own))
        ]
        everyone = [said for said in said_by_rank if not said.is_new]
        if len(steps := {said.step for said in everyone}) > 1:
            raise DisagreementError(f"after a recovery the ranks stand at different steps: {sorted(steps)}")
        if len(everyone) < len(said_by_rank):
            if not everyone:
                raise NodeLostError("all ranks that had trained have died; the job must go on from a checkpoint")
            self._brief_newcomers(said_by_rank.index(everyone[0]))
            has_evaluated = self._progress.evaluated_at_step == self._progress.step
            # Whoever has just joined has the rates of this step, and the others may have those of the step before.
            self._job.schedule.apply(self._progress.step)
        # Of the checkpoint under way the dead rank's part is missing, so that it is begun anew.
        self._checkpoint_owed = any(said.owes_checkpoint for said in everyone)
        if any(said.requests is not None for said in everyone):
            self._followed_up = False
        if not all(said.has_evaluated for said in everyone) and has_evaluated:
            self._progress.evaluated_at_step = None

    def attend(self) -> None:
        """Take in what the coordinator says, on a rank that waits to take another's place."""
        self._wishes.attend()

    def _brief_newcomers(self, root: int) -> None:
        """Have those that have just joined stand where rank `root` stands. Collective."""
        own = b""
        if self._communicator.rank == root:
            own = msgspec.msgpack.encode(
                Briefing(
                    self._progress,
                    self._ledger.chain_sha256,
                    *self._reporter.unconfirmed(),
                    self._reporter.counts,
                    int(self._requests_agreed),
                    self._followed_up,
                    self._schedule_told_at,
                    None if self._fatal is None else str(self._fatal),
                    0.0 if self._began is None else time.perf_counter() - self._began,
                    self._samples_before,
                )
            )
        told = self._communicator.allgather_bytes(own)[root]
        self._brief(root)
        if not self._is_new:
            return
        briefing = msgspec.msgpack.decode(told, type=Briefing)
        self._progress.become(briefing.progress)
        self._job.schedule.restore(self._progress.schedule, self._progress.step)
        self._ledger.go_on_from(briefing.chain_sha256)
        self._reporter.take_over(briefing.records, briefing.evaluations, briefing.counts)
        self._requests_agreed = Request(briefing.requests)
        self._followed_up, self._schedule_told_at = briefing.has_followed_up, briefing.schedule_told_at
        self._fatal = None if briefing.fatal is None else NonFiniteError(briefing.fatal)
        self._began, self._samples_before = time.perf_counter() - briefing.seconds, briefing.samples_before
        self._is_new = False

    def _is_over(self) -> bool:
        """Whether no step is to be taken any more, and what follows the last one has been done."""
        if self._fatal is not None:
            return True
        is_last = self._progress.step >= self._job.total_steps or bool(self._requests_agreed & STOPS)
        return self._followed_up and is_last

    def _take(self, result: StepResult) -> None:
        """Note a step that all ranks have taken."""
        self._requests_agreed = Request(result.requests)
        try:
            warning = self._skip_limit.check(result.nonfinite_shards)
        except NonFiniteError as error:
            self._fatal = error
            return
        if warning is not None and self._communicator.rank == 0:
            warn(warning)
        self._commit(result)
        self._followed_up = False

    def _follow_up(self) -> None:
        """What is due after a step. To do it once more, from its beginning, changes nothing."""
        requests = self._requests_agreed
        if self._ends_epoch():
            self._end_epoch()
        if self._checkpoint_is_due(requests):
            answers, self._wishes.checkpoint = self._wishes.checkpoint, ""
            # No checkpoint of what ranks do not agree on. And the ledger's lines of these steps must be on the disk
            # before the checkpoint that contains them.
            self._comparison.run(f"at the checkpoint of step {self._progress.step}")
            self._reporter.send("train", self._epoch(), self._scalars())
            self._checkpointing.begin(self._request_id(f"step-{self._progress.step}"), answers)
            self._checkpoint_owed = False
        self._reporter.send_if_due("train", self._epoch(), self._scalars())
        self._followed_up = True

    def _save(self) -> None:
        """Save the last checkpoint of this start. Collective."""
        self._comparison.run(f"at the checkpoint of step {self._progress.step}")
        self._reporter.send("checkpoint", self._epoch(), self._scalars())
        self._wishes.take_in(self._checkpointing)
        answers = self._wishes.checkpoint
        for num_tries in range(1, _MOST_TRIES + 1):
            request_id = self._request_id(f"final-{num_tries}" if num_tries > 1 else "final")
            save = partial(self._checkpointing.save_now, request_id, answers, is_last_try=num_tries == _MOST_TRIES)
            # If the rank that was away has died, it is this agreement that says so.
            done = together(self._communicator, save)
            if done.ok:
                break
            if not done.rank_away:
                self._give_the_disk_time(done.message, is_first=num_tries == 1)

    def _give_the_disk_time(self, problem: str, *, is_first: bool) -> None:
        """Somebody may make room; what has been trained since the checkpoint before would be lost."""
        if is_first and self._communicator.rank == 0:
            seconds = _PAUSE_SECONDS * (_MOST_TRIES - 1)
            warn(
                f"the last checkpoint, of step {self._progress.step}, was not saved: {problem}; trying again for "
                f"{seconds:g} s, in which you may make room"
            )
        time.sleep(_PAUSE_SECONDS)

    def _request_id(self, name: str) -> str:
        """A name for a checkpoint that no other membership has used."""
        return f"{name}-{self._ledger.membership}" if self._ledger.membership else name

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
        self._reporter.count(num_samples, skipped=skipped)

    def _checkpoint_is_due(self, requests: Request) -> bool:
        every = self._checkpoint_every_steps
        self._checkpoint_owed |= bool(requests & Request.CHECKPOINT) or (every > 0 and self._progress.step % every == 0)
        return self._checkpoint_owed and not requests & Request.CHECKPOINT_IN_FLIGHT

    def _ends_epoch(self) -> bool:
        return self._progress.step % self._job.plan.steps_per_epoch == 0

    def _end_epoch(self) -> None:
        every = self._job.recipe.train.eval_every_epochs
        epochs = self._progress.step // self._job.plan.steps_per_epoch
        if every and epochs % every == 0:
            self._evaluate()
            # Not where training ends within an epoch: if it is prolonged, that evaluation has not been.
            if self._progress.eval_loss is not None and self._schedule_told_at != self._progress.step:
                self._job.schedule.evaluated(self._progress.eval_loss)
                self._progress.schedule = self._job.schedule.state()
                self._schedule_told_at = self._progress.step
        self._announce(self._progress.line(epochs, self._job.recipe.train.epochs))

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
