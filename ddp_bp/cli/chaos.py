"""`ddp-bp chaos`: train a recipe once in peace and then while processes die, and compare every bit."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import click

from ddp_bp.chaos.fill import check_may_fill
from ddp_bp.chaos.points import draw_deaths
from ddp_bp.chaos.record import JobOrder, JobRecord
from ddp_bp.chaos.schedule import DEFAULT_KINDS, KINDS, Kind, draw_schedule
from ddp_bp.chaos.verdict import problems_of_run, read_summary
from ddp_bp.cli import options
from ddp_bp.cli.chaos_job import run_job, train_command
from ddp_bp.cli.chaos_output import ChaosReport, JobResult, show_chaos
from ddp_bp.cli.output import seconds_text
from ddp_bp.cli.signals import STOP_EXIT_CODES, stop_signals
from ddp_bp.errors import InputError
from ddp_bp.recipes import load_recipe
from ddp_bp.worker.datasource import data_problems
from ddp_bp.worker.death import POINTS, Point, encode_deaths
from ddp_bp.worker.factory import model_problems

SHORTEST_MEAN_SECONDS = 0.5
_NUM_LINES = 20


def fault_kinds(text: str) -> tuple[Kind, ...]:
    """Kinds of disturbances, divided by commas. Raises click.BadParameter."""
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in KINDS:
            raise click.BadParameter(f"expected some of {', '.join(KINDS)}, got {name!r}")
    return tuple(kind for kind in get_args(Kind) if kind in names)


@click.command()
@options.recipe_argument
@options.workers_option(required=False, default=4)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first job's disturbances.")
@click.option(
    "--times",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many jobs are disturbed, with consecutive seeds.",
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
    "--at",
    "point",
    type=click.Choice(POINTS),
    help="Instead: let ranks die at this very point of a step; which ones, and in which step, the seed says.",
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
    point: Point | None,
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
    if point is not None and (faults is not None or mean_seconds is not None):
        raise click.UsageError("--at says what happens and when; --faults and --every cannot be given with it")
    if point is not None and num_workers < (needed := 3 if point == "recovery" else 2):
        raise click.UsageError(f"--at {point}: expected at least -n {needed}, so that somebody is left")
    load_recipe(recipe, overrides, model_problems, data_problems)
    folder = _new_folder(recipe, run_dir)
    kinds = faults or DEFAULT_KINDS
    if "fill" in kinds:
        check_may_fill(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print(text, file=sys.stderr if as_json else sys.stdout, flush=True)

    def order(name: str) -> JobOrder:
        command = train_command(recipe, num_workers, overrides, folder / name, binds=binds)
        return JobOrder(name, command, folder / name, secrets.token_hex(8), patience_seconds)

    with stop_signals() as asked:
        say(f"undisturbed, on {num_workers} workers: {folder / 'undisturbed'}")
        first = run_job(order("undisturbed"), asked, say)
        if asked:
            return STOP_EXIT_CODES[asked[0]]
        if code := _failure(folder, first):
            return code
        undisturbed = read_summary(folder / "undisturbed") or {}
        report = ChaosReport(recipe, num_workers, undisturbed, _rate(undisturbed, first))
        mean_seconds = mean_seconds or max(SHORTEST_MEAN_SECONDS, first.seconds / 4)
        what = f"deaths at {point}" if point else f"{', '.join(kinds)} every {seconds_text(mean_seconds)} in the mean"
        say(f"{undisturbed['steps']} steps in {seconds_text(first.seconds)}; from now on with {what}")
        for number in range(seed, seed + times):
            job = order(f"seed-{number}")
            say(f"seed {number}: {job.run_dir}")
            if point is not None:
                deaths = encode_deaths(draw_deaths(number, point, num_workers, undisturbed["steps"]))
                job = replace(job, deaths=deaths)
            else:
                job = replace(job, schedule=draw_schedule(number, kinds, mean_seconds, num_workers))
            record = run_job(job, asked, _indented(say))
            if asked:
                return STOP_EXIT_CODES[asked[0]]
            report.jobs.append(_judged(number, job, record, report))
    show_chaos(report, as_json=as_json)
    return 0 if report.all_survived else 1


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


def _judged(seed: int, job: JobOrder, record: JobRecord, report: ChaosReport) -> JobResult:
    problems = list(record.problems)
    if record.exit_code is not None and record.exit_code != 0:
        log = job.run_dir.parent / f"{job.name}.log"
        problems.append(f"ddp-bp train ended with exit code {record.exit_code}; see {log}")
    problems += problems_of_run(job.run_dir, report.undisturbed)
    if not record.done:
        problems.append("nothing was disturbed: training was over before; lower --every, or train for longer")
    rate, calm = _rate(read_summary(job.run_dir), record), report.samples_per_second
    return JobResult(seed, job.run_dir, record, rate / calm if rate and calm else None, problems)


def _rate(summary: dict[str, object] | None, record: JobRecord) -> float | None:
    """Committed samples a second, all that a disturbance cost included."""
    samples = (summary or {}).get("samples")
    return samples / record.seconds if isinstance(samples, int) and record.seconds > 0 else None


def _indented(say: Callable[[str], None]) -> Callable[[str], None]:
    return lambda text: say(f"  {text}")
