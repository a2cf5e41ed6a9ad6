"""What `ddp-bp chaos` shows: a line for each disturbance, a table of the jobs, or JSON with the same and more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ddp_bp.chaos.record import JobOrder, JobRecord
from ddp_bp.cli.output import print_json, print_table, size_text


@dataclass(frozen=True)
class JobResult:
    """A disturbed job. `goodput`: committed samples a second over those of the undisturbed run."""

    order: JobOrder
    record: JobRecord
    goodput: float | None
    problems: list[str]

    @property
    def survived(self) -> bool:
        return not self.problems

    @property
    def mean_seconds_between(self) -> float | None:
        """From one disturbance to the next by the clock, what they cost included."""
        return self.record.seconds / len(self.record.done) if self.record.done else None

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        record = {key: value for key, value in asdict(self.record).items() if key != "problems"}
        return {
            "name": self.order.name,
            "seed": self.order.seed,
            "survived": self.survived,
            "problems": self.problems,
            "goodput": self.goodput,
            "mean_seconds_between": self.mean_seconds_between,
            "run_dir": str(self.order.run_dir),
            **record,
        }


@dataclass(frozen=True)
class PointResult:
    """How often ranks have died at a point: as often as `asked_for`, less those times at which none came there. Those
    times count as survived whose jobs have survived."""

    point: str
    asked_for: int
    took_place: int
    survived: int


@dataclass
class ChaosReport:
    """All jobs of a call. `samples_per_second`: undisturbed."""

    recipe: str
    num_workers: int
    undisturbed: dict[str, Any]
    samples_per_second: float | None
    jobs: list[JobResult] = field(default_factory=list)

    @property
    def all_survived(self) -> bool:
        return all(job.survived for job in self.jobs)

    def points(self) -> list[PointResult]:
        """By point, if ranks were to die at some."""
        jobs: dict[str, list[JobResult]] = {}
        for job in self.jobs:
            if job.order.rounds:
                jobs.setdefault(job.order.rounds[0].point, []).append(job)
        return [
            PointResult(
                point,
                sum(len(job.order.rounds) for job in those),
                sum(len(job.record.done) for job in those),
                sum(len(job.record.done) for job in those if job.survived),
            )
            for point, those in jobs.items()
        ]


def show_chaos(report: ChaosReport, *, as_json: bool) -> None:
    """Print what came of all jobs."""
    if as_json:
        kept = ("steps", "samples", "weights_sha256", "ledger_sha256", "seconds", "samples_per_second")
        print_json(
            {
                "recipe": report.recipe,
                "num_workers": report.num_workers,
                "all_survived": report.all_survived,
                "samples_per_second": report.samples_per_second,
                "undisturbed": {key: report.undisturbed.get(key) for key in kept},
                "points": [asdict(point) for point in report.points()],
                "jobs": [job.as_dict() for job in report.jobs],
            }
        )
        return
    rows = [
        (
            job.order.name,
            "yes" if job.survived else "NO",
            len(job.record.done),
            job.record.num_in_place,
            job.record.num_restarts,
            job.record.num_starts,
            None if job.goodput is None else f"{job.goodput:.0%}",
            _most(job.record),
            _growth(job.record),
        )
        for job in report.jobs
    ]
    print()
    columns = ("job", "survived", "disturbed", "in place", "restarts", "starts", "goodput", "largest rank", "growth")
    print_table(columns, rows)
    for job in report.jobs:
        for problem in job.problems:
            print(f"{job.order.name}: {problem}")
    if points := report.points():
        print()
        print_table(("deaths at", "survived"), [(point.point, _share(point)) for point in points])
    print(
        f"\n{_count(report.jobs, points)} survived: same weights, same ledger, nothing left behind"
        f"\nweights sha256  {report.undisturbed['weights_sha256']}"
        f"\nledger sha256   {report.undisturbed['ledger_sha256']}"
    )


def _share(point: PointResult) -> str:
    text = f"{point.survived} of {point.took_place}"
    missing = point.asked_for - point.took_place
    return f"{text}; {missing} did not take place" if missing else text


def _count(jobs: Sequence[JobResult], points: Sequence[PointResult]) -> str:
    in_jobs = f"{sum(job.survived for job in jobs)} of {len(jobs)}"
    if not points:
        return in_jobs
    survived, took_place = sum(point.survived for point in points), sum(point.took_place for point in points)
    return f"{survived} of {took_place} deaths, in {in_jobs} jobs,"


def _most(record: JobRecord) -> str | None:
    """What the ranks that were left at the end held at most: memory and open files."""
    if not record.usage:
        return None
    memory = max(one.last.resident_bytes for one in record.usage)
    return f"{size_text(memory)}, {max(one.last.num_descriptors for one in record.usage)} files"


def _growth(record: JobRecord) -> str | None:
    """By how much the process of a rank has grown while others died: memory and open files."""
    if record.growth is None:
        return None
    return f"{record.growth.resident:+.1%}, {record.growth.num_descriptors:+d} files"
