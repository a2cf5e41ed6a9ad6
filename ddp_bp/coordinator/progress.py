"""What the reports of the ranks add up to: where time goes, how fast, and how well training does.

Folds reports and evaluations; knows neither connections nor how the sums are shown.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from ddp_bp.wire.messages import Evaluation, Report
from ddp_bp.wire.phases import NUM_PHASE_BUCKETS, PHASES

RATE_WINDOW_SECONDS: Final = 5.0
MAX_HISTORY_POINTS: Final = 400


@dataclass(slots=True)
class Durations:
    """A histogram over `PHASE_BUCKETS_SECONDS` and one bucket more, with the sum of what it counted."""

    counts: list[int] = field(default_factory=lambda: [0] * NUM_PHASE_BUCKETS)
    sum_seconds: float = 0.0

    @property
    def mean_seconds(self) -> float | None:
        count = sum(self.counts)
        return self.sum_seconds / count if count else None


class History:
    """(step, value) points of a curve. Where there are too many, every second one goes and later ones come sparser."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []
        self._stride = 1
        self._num_seen = 0

    def add(self, step: int, value: float) -> None:
        if self._num_seen % self._stride == 0:
            self.points.append((step, value))
            if len(self.points) > MAX_HISTORY_POINTS:
                self.points = self.points[::2]
                self._stride *= 2
        self._num_seen += 1


class Progress:
    """Sums since this coordinator started."""

    def __init__(self) -> None:
        self.reported = False
        self.step = 0
        self.epoch = 0
        self.num_steps = 0
        self.num_samples = 0
        self.num_nonfinite_steps = 0
        self.scalars: dict[str, float] = {}
        self.evaluation: Evaluation | None = None
        self.durations: dict[int, dict[str, Durations]] = {}
        self.train_loss = History()
        self.eval_loss = History()
        self._window: deque[tuple[float, int]] = deque()

    def report(self, report: Report, started_as: int) -> None:
        """Takes in a report of the rank that had the number `started_as` at the start of the job, under which its
        durations are kept. Steps, samples and scalars are those of rank 0, which counts for all."""
        durations = self.durations.setdefault(started_as, {})
        for phase, delta in report.phases.items():
            if phase not in PHASES:
                continue
            total = durations.setdefault(phase, Durations())
            total.counts = [a + b for a, b in zip(total.counts, delta.counts, strict=True)]
            total.sum_seconds += delta.sum_seconds
        if report.rank != 0:
            return
        self.reported = True
        self.step = report.step
        self.epoch = report.epoch
        self.num_steps += report.num_steps
        self.num_samples += report.num_samples
        self.num_nonfinite_steps += report.num_nonfinite_steps
        self.scalars.update(report.scalars)
        if report.num_steps and "train_loss" in report.scalars:
            self.train_loss.add(report.step, report.scalars["train_loss"])
        self._window.append((report.sent_at_unix_seconds, self.num_samples))
        while len(self._window) > 2 and self._window[-1][0] - self._window[1][0] >= RATE_WINDOW_SECONDS:
            self._window.popleft()

    def evaluated(self, evaluation: Evaluation) -> None:
        """Takes in the result of an evaluation."""
        self.evaluation = evaluation
        self.eval_loss.add(evaluation.step, evaluation.loss)

    @property
    def samples_per_second(self) -> float | None:
        """Over the last few seconds, by the clock of rank 0; None before there is an interval to speak of."""
        if len(self._window) < 2:
            return None
        (begin, before), (end, after) = self._window[0], self._window[-1]
        return (after - before) / (end - begin) if end > begin else None
