"""What `ddp-bp chaos` shows: a line for each disturbance, a table of the jobs, or JSON with the same and more."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ddp_bp.chaos.record import JobRecord
from ddp_bp.cli.output import print_json, print_table, size_text


@dataclass(frozen=True)
class JobResult:
    """A disturbed job. `goodput`: committed samples a second over those of the undisturbed run."""

    seed: int
    run_dir: Path
    record: JobRecord
    goodput: float | None
    problems: list[str]

    @property
    def survived(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        record = {key: value for key, value in asdict(self.record).items() if key != "problems"}
        return {
            "seed": self.seed,
            "survived": self.survived,
            "problems": self.problems,
            "goodput": self.goodput,
            "run_dir": str(self.run_dir),
            **record,
        }


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
                "jobs": [job.as_dict() for job in report.jobs],
            }
        )
        return
    rows = [
        (
            job.seed,
            "yes" if job.survived else "NO",
            len(job.record.done),
            job.record.num_in_place,
            job.record.num_restarts,
            job.record.num_starts,
            None if job.goodput is None else f"{job.goodput:.0%}",
            _most(job.record),
            job.run_dir,
        )
        for job in report.jobs
    ]
    print()
    columns = ("seed", "survived", "disturbed", "in place", "restarts", "starts", "goodput", "largest rank", "run")
    print_table(columns, rows)
    for job in report.jobs:
        for problem in job.problems:
            print(f"seed {job.seed}: {problem}")
    num_survived = sum(job.survived for job in report.jobs)
    print(
        f"\n{num_survived} of {len(report.jobs)} survived: same weights, same ledger, nothing left behind"
        f"\nweights sha256  {report.undisturbed['weights_sha256']}"
        f"\nledger sha256   {report.undisturbed['ledger_sha256']}"
    )


def _most(record: JobRecord) -> str | None:
    """What the ranks that were left at the end held at most: memory and open files."""
    if not record.usage:
        return None
    memory = max(one.last.resident_bytes for one in record.usage)
    return f"{size_text(memory)}, {max(one.last.num_descriptors for one in record.usage)} files"
