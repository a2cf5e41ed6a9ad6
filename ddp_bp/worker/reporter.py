"""Reports to the coordinator: what a rank did, batched a few times a second and never once per step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from ddp_bp.wire.messages import Evaluation, Failure, LedgerRecords, PhaseTotal, Report
from ddp_bp.worker.evaluation import EvaluationResult
from ddp_bp.worker.ledger import Ledger
from ddp_bp.worker.link import CoordinatorLink
from ddp_bp.worker.phases import PhaseClock
from ddp_bp.worker.progress import Progress

INTERVAL_SECONDS = 0.25


class Reporter:
    """One rank's reports. Only rank 0 sends what all ranks know alike: losses and the ledger.

    The others keep the lines of the ledger until they are durable, since each may be rank 0 one day.
    """

    def __init__(self, link: CoordinatorLink, rank: int, clock: PhaseClock, progress: Progress, ledger: Ledger) -> None:
        self._link, self._rank = link, rank
        self._clock, self._progress, self._ledger = clock, progress, ledger
        self._due = 0.0
        self._num_steps = self._num_samples = self._num_skipped = 0
        self._unconfirmed: deque[LedgerRecords] = deque()
        self._evaluations: deque[Evaluation] = deque()

    def count(self, num_samples: int, *, skipped: bool = False) -> None:
        """Note a committed step, and how many samples the whole batch has."""
        self._num_steps += 1
        self._num_skipped += skipped
        self._num_samples += num_samples

    def send_if_due(self, phase: str, epoch: int, scalars: dict[str, float]) -> None:
        """Send a report if the last one is old enough."""
        if time.perf_counter() >= self._due:
            self.send(phase, epoch, scalars)

    def send(self, phase: str, epoch: int, scalars: dict[str, float]) -> None:
        """Send a report, and the new lines of the ledger, now."""
        self._due = time.perf_counter() + INTERVAL_SECONDS
        report = Report(
            rank=self._rank,
            step=self._progress.step,
            epoch=epoch,
            sent_at_unix_seconds=time.time(),
            num_steps=self._num_steps,
            num_samples=self._num_samples,
            phase=phase,  # type: ignore[arg-type]
            phases={name: PhaseTotal(counts, total) for name, (counts, total) in self._clock.totals().items()},
            scalars=scalars if self._rank == 0 else {},
            num_nonfinite_steps=self._num_skipped,
        )
        self._link.post(report)
        if (records := self._new_records()) and self._rank == 0:
            self._link.post(records)

    def _new_records(self) -> LedgerRecords | None:
        """The lines since the last call, which are now kept until they are durable."""
        if not (lines := self._ledger.take_lines()):
            return None
        records = LedgerRecords(0, lines, self._progress.step - 1, self._ledger.chain_sha256)
        self._unconfirmed.append(records)
        return records

    def renumber(self, rank: int) -> None:
        """From now on this is rank `rank`. What a dead rank 0 may not have handed in, the new one does."""
        self._rank = rank
        self.send_again()

    def ledger_is_durable(self, step: int) -> None:
        """Forget the lines up to `step`: the coordinator has them on the disk."""
        while self._unconfirmed and self._unconfirmed[0].last_step <= step:
            self._unconfirmed.popleft()
        # Evaluated before that step, and written before its line.
        while self._evaluations and self._evaluations[0].step <= step:
            self._evaluations.popleft()

    def unconfirmed(self) -> tuple[list[LedgerRecords], list[Evaluation]]:
        """What may not be durable yet."""
        self._new_records()
        return list(self._unconfirmed), list(self._evaluations)

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many steps, samples and skipped steps have been counted."""
        return self._num_steps, self._num_samples, self._num_skipped

    def take_over(
        self, records: Sequence[LedgerRecords], evaluations: Sequence[Evaluation], counts: tuple[int, int, int]
    ) -> None:
        """Keep what another rank has as `unconfirmed`, and count on from its `counts`."""
        self._num_steps, self._num_samples, self._num_skipped = counts
        self._unconfirmed, self._evaluations = deque(records), deque(evaluations)

    def send_again(self) -> None:
        """After a lost connection: send what may not have arrived, and what a new coordinator cannot know."""
        if self._rank == 0:
            for evaluation in self._evaluations:
                self._link.post(evaluation)
            for records in self._unconfirmed:
                self._link.post(records)

    def evaluation(self, result: EvaluationResult, epoch: int) -> None:
        """Send the result of an evaluation."""
        evaluation = Evaluation(
            self._progress.step, epoch, result.loss, result.accuracy, result.num_samples, result.seconds
        )
        self._evaluations.append(evaluation)
        if self._rank == 0:
            self._link.post(evaluation)

    def failure(self, error: BaseException, traceback: str) -> None:
        """Send this rank's own error."""
        text = f"{type(error).__name__}: {error}"
        self._link.post(Failure(self._rank, self._progress.step, text, traceback))
