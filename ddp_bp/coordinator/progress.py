"""What the reports of the ranks add up to: where time goes, how fast, and how well training does.

Ranks report sums since they began, so that a report that is lost, or told to a coordinator that is killed, costs
nothing: the next one says it as well. Folds reports and evaluations; knows neither connections nor how the sums are
shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from ddp_bp.wire.messages import Evaluation, PhaseTotal, Report
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

    def add(self, total: PhaseTotal) -> None:
        self.counts = [a + b for a, b in zip(self.counts, total.counts, strict=True)]
        self.sum_seconds += total.sum_seconds


class History(msgspec.Struct):
    """(step, value) points of a curve. Where there are too many, every second one goes and later ones come sparser."""

    points: list[tuple[int, float]] = []
    stride: int = 1
    num_seen: int = 0

    def add(self, step: int, value: float) -> None:
        if self.num_seen % self.stride == 0:
            self.points.append((step, value))
            if len(self.points) > MAX_HISTORY_POINTS:
                self.points = self.points[::2]
                self.stride *= 2
        self.num_seen += 1


class Counts(msgspec.Struct, frozen=True):
    """What the job has done: committed steps, their samples, and how many of the steps changed nothing."""

    steps: int = 0
    samples: int = 0
    nonfinite_steps: int = 0

    def plus(self, report: Report) -> Counts:
        return Counts(
            self.steps + report.num_steps,
            self.samples + report.num_samples,
            self.nonfinite_steps + report.num_nonfinite_steps,
        )

    def at_least(self, other: Counts) -> Counts:
        return Counts(
            max(self.steps, other.steps),
            max(self.samples, other.samples),
            max(self.nonfinite_steps, other.nonfinite_steps),
        )


PhaseTotals = dict[str, PhaseTotal]


class Sums(msgspec.Struct):
    """Everything that must not be forgotten with a coordinator that is killed, as plain data.

    evaluated_steps   of the evaluations that the present processes have reported
    counts    what the job has done; step, epoch and scalars are what was reported last
    begun_at  what it had done when the processes that report now began
    before    by rank, the durations that processes reported which have ended
    latest    by rank, those that the present one reported last
    """

    counts: Counts = Counts()
    begun_at: Counts = Counts()
    before: dict[int, PhaseTotals] = {}
    latest: dict[int, PhaseTotals] = {}
    evaluation: Evaluation | None = None
    evaluated_steps: list[int] = []
    step: int = 0
    epoch: int = 0
    scalars: dict[str, float] = {}
    reported: bool = False
    train_loss: History = msgspec.field(default_factory=History)
    eval_loss: History = msgspec.field(default_factory=History)

    def begin_anew(self) -> None:
        """The processes that report from now on are others, and count from 0."""
        self.begun_at = self.counts
        self.evaluated_steps = []
        for rank in list(self.latest):
            self.retire(rank)

    def retire(self, rank: int) -> None:
        """Another process is this rank from now on."""
        for phase, total in self.latest.pop(rank, {}).items():
            before = self.before.setdefault(rank, {})
            before[phase] = _sum(before[phase], total) if phase in before else total


class Progress:
    """How the job is doing, as far as it was reported."""

    def __init__(self) -> None:
        self.sums = Sums()
        self._joined_at: dict[int, Counts] = {}
        self._num_steps: dict[int, int] = {}
        self._durations: dict[int, dict[str, Durations]] = {}
        self._window: deque[tuple[float, int]] = deque()

    def count_on(self, sums: Sums) -> None:
        """Go on from the sums of a coordinator whose place this one takes."""
        self.sums = sums
        for rank in {*sums.before, *sums.latest}:
            self._add_up(rank)

    def replaced(self, rank: int) -> None:
        """Another process is the rank of this number at the start from now on, and counts from 0."""
        self.sums.retire(rank)
        self._joined_at[rank] = self.sums.counts
        self._num_steps.pop(rank, None)

    def report(self, report: Report, started_as: int) -> bool:
        """Takes in a report of the rank that had the number `started_as` at the start of the job, under which its
        durations are kept. Scalars are those of rank 0. Returns whether it tells of steps that this rank had not."""
        self.sums.latest[started_as] = {name: total for name, total in report.phases.items() if name in PHASES}
        self._add_up(started_as)
        counts = self._joined_at.get(started_as, self.sums.begun_at).plus(report)
        self.sums.counts = self.sums.counts.at_least(counts)
        has_steps = report.num_steps > self._num_steps.get(started_as, 0)
        self._num_steps[started_as] = report.num_steps
        if report.rank != 0:
            return has_steps
        self.sums.step, self.sums.epoch, self.sums.reported = report.step, report.epoch, True
        self.sums.scalars.update(report.scalars)
        if has_steps and "train_loss" in report.scalars:
            self.train_loss.add(report.step, report.scalars["train_loss"])
        self._window.append((report.sent_at_unix_seconds, self.num_samples))
        while len(self._window) > 2 and self._window[-1][0] - self._window[1][0] >= RATE_WINDOW_SECONDS:
            self._window.popleft()
        return has_steps

    def evaluated(self, evaluation: Evaluation) -> bool:
        """Takes in the result of an evaluation. False: it was known."""
        if evaluation.step in self.sums.evaluated_steps:
            return False
        self.sums.evaluated_steps.append(evaluation.step)
        self.sums.evaluation = evaluation
        self.eval_loss.add(evaluation.step, evaluation.loss)
        return True

    @property
    def step(self) -> int:
        return self.sums.step

    @property
    def epoch(self) -> int:
        return self.sums.epoch

    @property
    def scalars(self) -> Mapping[str, float]:
        return self.sums.scalars

    @property
    def reported(self) -> bool:
        return self.sums.reported

    @property
    def num_steps(self) -> int:
        return self.sums.counts.steps

    @property
    def num_samples(self) -> int:
        return self.sums.counts.samples

    @property
    def num_nonfinite_steps(self) -> int:
        return self.sums.counts.nonfinite_steps

    @property
    def evaluation(self) -> Evaluation | None:
        return self.sums.evaluation

    @property
    def train_loss(self) -> History:
        return self.sums.train_loss

    @property
    def eval_loss(self) -> History:
        return self.sums.eval_loss

    @property
    def durations(self) -> Mapping[int, Mapping[str, Durations]]:
        """By rank, as it was numbered at the start, and phase."""
        return self._durations

    @property
    def samples_per_second(self) -> float | None:
        """Over the last few seconds, by the clock of rank 0; None before there is an interval to speak of."""
        if len(self._window) < 2:
            return None
        (begin, before), (end, after) = self._window[0], self._window[-1]
        return (after - before) / (end - begin) if end > begin else None

    def _add_up(self, rank: int) -> None:
        durations: dict[str, Durations] = {}
        for totals in (self.sums.before.get(rank, {}), self.sums.latest.get(rank, {})):
            for phase, total in totals.items():
                durations.setdefault(phase, Durations()).add(total)
        self._durations[rank] = durations


def _sum(first: PhaseTotal, second: PhaseTotal) -> PhaseTotal:
    counts = [a + b for a, b in zip(first.counts, second.counts, strict=True)]
    return PhaseTotal(counts, first.sum_seconds + second.sum_seconds)
