"""`ddp-bp chaos`: train a recipe once in peace and then while processes die, and compare every bit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import click

from ddp_bp.chaos.fill import check_may_fill
from ddp_bp.chaos.joins import FEWEST_RANKS
from ddp_bp.chaos.points import AFTER_A_DEATH
from ddp_bp.chaos.record import JobOrder, JobRecord
from ddp_bp.chaos.schedule import DEFAULT_KINDS, KINDS, MOST_DISTURBANCES, Kind
from ddp_bp.chaos.verdict import problems_of_run, read_summary
from ddp_bp.cli import options
from ddp_bp.cli.chaos_job import run_job
from ddp_bp.cli.chaos_orders import Orders
from ddp_bp.cli.chaos_output import ChaosReport, JobResult, show_chaos
from ddp_bp.cli.output import seconds_text
from ddp_bp.cli.signals import STOP_EXIT_CODES, stop_signals
from ddp_bp.errors import InputError
from ddp_bp.recipes import load_recipe
from ddp_bp.worker.datasource import data_problems
from ddp_bp.worker.death import POINTS, Point
from ddp_bp.worker.factory import model_problems

SHORTEST_MEAN_SECONDS = 0.5
_NUM_LINES = 20
_ALL = "all"


def fault_kinds(text: str) -> tuple[Kind, ...]:
    """Kinds of disturbances, divided by commas. Raises click.BadParameter."""
    names = _names(text, KINDS)
    return tuple(kind for kind in KINDS if kind in names)


def points_named(text: str) -> tuple[Point, ...]:
    """Points of a step, divided by commas, or all of them. Raises click.BadParameter."""
    names = POINTS if text.strip() == _ALL else _names(text, POINTS)
    return tuple(point for point in POINTS if point in names)


def _names(text: str, known: Sequence[str]) -> Collection[str]:
    names = {part.strip() for part in text.split(",")}
    for name in sorted(names - set(known)):
        raise click.BadParameter(f"expected some of {', '.join(known)}, got {name!r}")
    return names


@click.command()
@options.recipe_argument
@options.workers_option(required=False, default=4)
@click.option("--seed", type=int, default=0, show_default=True, help="The first one.")
@click.option(
    "--times",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many jobs are disturbed, with consecutive seeds; with --at, how often ranks die at each point, -n less 3 "
    "times in a job.",
)
@click.option(
    "--faults",
    callback=lambda _context, _parameter, text: None if text is None else fault_kinds(text),
    metavar="KIND,...",
    help=f"Which disturbances there are: {', '.join(KINDS)}.  [default: {','.join(DEFAULT_KINDS)}]",
)
@click.option(
    "--every",
    "mean_seconds",
    type=click.FloatRange(min=0.0, min_open=True),
    help="The mean time from one disturbance to the next, in seconds of training.  [default: a quarter of the "
    f"undisturbed run, at least {SHORTEST_MEAN_SECONDS:g}]",
)
@click.option(
    "--disturbances",
    "most_disturbances",
    type=click.IntRange(min=1),
    help=f"How many there are at most in a job.  [default: {MOST_DISTURBANCES}]",
)
@click.option(
    "--at",
    "points",
    callback=lambda _context, _parameter, text: () if text is None else points_named(text),
    metavar=f"POINT,...|{_ALL}",
    help="Instead: let ranks die at these very points of a step; which ones, and in which steps, the seeds say: "
    f"{', '.join(POINTS)}.",
)
@click.option(
    "--patience",
    "patience_seconds",
    type=click.FloatRange(min=1.0),
    default=180.0,
    show_default=True,
    help="After how many seconds without a step, a recovery or a restart a job is taken to hang.",
)
@options.set_option
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="A new folder for the run directories and logs of all jobs. [default: runs/chaos-RECIPE-DATE-TIME]",
)
@options.bind_option
@options.json_option
def chaos(
    recipe: str,
    num_workers: int,
    seed: int,
    times: int,
    faults: tuple[Kind, ...] | None,
    mean_seconds: float | None,
    most_disturbances: int | None,
    points: tuple[Point, ...],
    patience_seconds: float,
    overrides: tuple[str, ...],
    run_dir: Path | None,
    binds: bool,
    as_json: bool,
) -> int:
    """Train RECIPE on N workers, undisturbed and then while processes of the job are killed and stopped, and compare.

    The disturbances of a seed are always the same ones. Kinds: `kill` one rank, `kill-two` or `kill-all-but-one` at
    once; `stop` a rank for a while, or until it is evicted; kill the `coordinator`; kill the `launcher`, `ddp-bp train`
    itself, and start it again; `fill` the file system until a checkpoint fails.

    A job has survived if its weights and its ledger are those of the undisturbed run to the bit, the ledger is valid,
    and neither processes nor files stay behind. Exit code 1 if one has not. Only processes on this host are disturbed,
    and only those of the job.
    """
    _check_options(num_workers, points, (faults, mean_seconds, most_disturbances))
    loaded, _ = load_recipe(recipe, overrides, model_problems, data_problems)
    folder = _new_folder(recipe, run_dir)
    kinds, most_disturbances = faults or DEFAULT_KINDS, most_disturbances or MOST_DISTURBANCES
    if "fill" in kinds:
        check_may_fill(folder)
    if points and loaded.train.shards is not None and loaded.train.shards < num_workers:
        # Who has no shard comes to none of its points; whoever has set the number wants it so.
        overrides = (f"train.shards={num_workers}", *overrides)
    folder.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print(text, file=sys.stderr if as_json else sys.stdout, flush=True)

    orders = Orders(recipe, num_workers, overrides, binds, folder, patience_seconds, loaded.fault.spares)
    with stop_signals() as asked:
        say(f"undisturbed, on {num_workers} workers: {folder / 'undisturbed'}")
        first = run_job(orders.undisturbed(), asked, say)
        if asked:
            return STOP_EXIT_CODES[asked[0]]
        if code := _failure(folder, first):
            return code
        undisturbed = read_summary(folder / "undisturbed") or {}
        report = ChaosReport(recipe, num_workers, undisturbed, _rate(undisturbed, first))
        mean_seconds = mean_seconds or max(SHORTEST_MEAN_SECONDS, first.seconds / 4)
        what = f"{', '.join(kinds)} every {seconds_text(mean_seconds)} in the mean"
        if points:
            what = f"deaths at {', '.join(points)}"
            jobs = orders.dying(seed, times, points, undisturbed["steps"])
        else:
            jobs = orders.disturbed(seed, times, kinds, mean_seconds, most_disturbances)
        say(f"{undisturbed['steps']} steps in {seconds_text(first.seconds)}; from now on with {what}")
        for job in jobs:
            say(f"{job.name}: {job.run_dir}")
            record = run_job(job, asked, _indented(say))
            if asked:
                return STOP_EXIT_CODES[asked[0]]
            report.jobs.append(_judged(job, record, report))
    show_chaos(report, as_json=as_json)
    return 0 if report.all_survived else 1


def _check_options(num_workers: int, points: Sequence[Point], others: Sequence[object]) -> None:
    """Raise click.UsageError if what was asked for does not go together."""
    if points and any(other is not None for other in others):
        raise click.UsageError(
            "--at says what happens and when; --faults, --every and --disturbances cannot be given with it"
        )
    for point in points:
        needed = FEWEST_RANKS if point == "join" else 3 if point in AFTER_A_DEATH else 2
        if num_workers < needed:
            raise click.UsageError(f"--at {point}: expected at least -n {needed}, so that somebody is left")


def _new_folder(recipe: str, run_dir: Path | None) -> Path:
    """The folder for all runs, which is not made yet. Raises InputError if something is in it."""
    folder = (run_dir or options.default_run_dir(f"chaos-{Path(recipe).stem}")).absolute()
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"--run-dir {folder}: expected a new or an empty folder, so that both runs begin anew")
    return folder


def _failure(folder: Path, record: JobRecord) -> int:
    """The exit code if the undisturbed run did not end well, after showing why."""
    problems = record.problems + problems_of_run(folder / "undisturbed", None)
    if record.exit_code == 0 and not problems:
        return 0
    lines = (folder / "undisturbed.log").read_text(errors="replace").splitlines()[-_NUM_LINES:]
    said = [f"ddp-bp: the undisturbed run did not end well (exit code {record.exit_code}):", *problems]
    print("\n".join([*said, *(f"  {line}" for line in lines)]), file=sys.stderr)
    return record.exit_code or 1


def _judged(job: JobOrder, record: JobRecord, report: ChaosReport) -> JobResult:
    problems = list(record.problems)
    if record.exit_code is not None and record.exit_code != 0:
        log = job.run_dir.parent / f"{job.name}.log"
        problems.append(f"ddp-bp train ended with exit code {record.exit_code}; see {log}")
    problems += problems_of_run(job.run_dir, report.undisturbed)
    if not record.done:
        problems.append("nothing was disturbed: training was over before; lower --every, or train for longer")
    rate, calm = _rate(read_summary(job.run_dir), record), report.samples_per_second
    return JobResult(job, record, rate / calm if rate and calm else None, problems)


def _rate(summary: dict[str, object] | None, record: JobRecord) -> float | None:
    """Committed samples a second, all that a disturbance cost included."""
    samples = (summary or {}).get("samples")
    return samples / record.seconds if isinstance(samples, int) and record.seconds > 0 else None


def _indented(say: Callable[[str], None]) -> Callable[[str], None]:
    return lambda text: say(f"  {text}")
