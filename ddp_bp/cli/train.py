"""`ddp-bp train`: check everything, start coordinator and workers, show how it goes, and end with one exit code."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import click

from ddp_bp.cli import options
from ddp_bp.cli.hosts import described
from ddp_bp.cli.job_start import JobStart
from ddp_bp.cli.kernels import Kernels, settle_kernels
from ddp_bp.cli.launcher import find_launcher, recovers_in_place, recovery_line
from ddp_bp.cli.on_hosts import HostCheck
from ddp_bp.cli.output import print_json
from ddp_bp.cli.placement import find_placement, own_interfaces
from ddp_bp.cli.prepare import Prepared, prepare, warn
from ddp_bp.cli.run_hold import hold_run
from ddp_bp.cli.signals import stop_exit_code, stop_signals
from ddp_bp.cli.starts import Starts
from ddp_bp.cli.supervise import Attempt, Ending
from ddp_bp.cli.view import TrainingView, shown_command, summary_table
from ddp_bp.errors import InputError
from ddp_bp.recipes import load_recipe
from ddp_bp.worker.rundir import SUMMARY_FILE, RunDirectory


@click.command()
@options.recipe_argument
@options.workers_option(required=False, default=None)
@options.hosts_options
@click.option(
    "--no-preflight",
    "preflight",
    flag_value=False,
    default=True,
    help="Do not look at the other hosts before ranks start there.",
)
@options.set_option
@options.run_dir_option
@options.resume_option
@options.bind_option
@click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    help="How often in a row all ranks are started again from the same checkpoint after one has died; 0: never. "
    "[default: fault.max_restarts]",
)
@click.option(
    "--coordinator-shell",
    type=options.WordsType(),
    default="",
    metavar="COMMAND",
    help="Start the coordinator elsewhere, with this command and one more argument, a shell command: for example "
    "'ssh HOST'. The run directory must be the same there, and coordinator.host an address of that host.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout, and the progress on stderr."
)
def train(
    recipe: str,
    num_workers: int | None,
    hosts: str | None,
    hostfile: Path | None,
    mpi_args: tuple[str, ...],
    preflight: bool,
    overrides: tuple[str, ...],
    run_dir: Path | None,
    resume: str,
    binds: bool,
    max_restarts: int | None,
    coordinator_shell: tuple[str, ...],
    as_json: bool,
) -> int:
    """Train RECIPE, a packaged name (see `ddp-bp recipes`) or the path of a .toml file, on N workers.

    Everything is checked before a process is started. Ctrl-C once saves a checkpoint and ends; the same command with
    --run-dir goes on from there, with any number of workers, and ends with the same weights to the bit.

    Workers run on this host, or on those of --hosts, --hostfile, a Slurm allocation, or the hostfile that
    PRTE_MCA_prte_default_hostfile names; then there is one for each slot unless -n says how many.
    """
    if max_restarts is not None:
        overrides = (*overrides, f"fault.max_restarts={max_restarts}")
    kernels = settle_kernels(recipe, overrides, run_dir, resume)
    kernels.check()
    launcher = find_launcher()
    placement = find_placement(hosts, hostfile, num_workers, launcher)
    run_dir = run_dir or options.default_run_dir(recipe)
    view = TrainingView(to_stderr=as_json)
    asked_for = _Invocation(recipe, overrides, num_workers, binds, hosts, hostfile, mpi_args, coordinator_shell, resume)
    if placement.spans_hosts and not coordinator_shell:
        overrides = placement.with_coordinator_host(load_recipe(recipe, overrides)[0], overrides)
    with contextlib.redirect_stdout(sys.stderr):  # what a model of the user's own prints is no part of our output
        prepared = prepare(recipe, overrides, placement.num_ranks, run_dir, resume, listens_here=not coordinator_shell)
    _check_size(placement.num_ranks, prepared.recipe.fault.min_workers)
    summary = prepared.run.finished_summary(prepared.recipe, prepared.job.total_steps)
    is_saved = prepared.checkpoint is not None and prepared.checkpoint.manifest.step == prepared.job.total_steps
    if summary is not None and resume == "auto" and is_saved:
        view.say(f"{run_dir} is trained to the end already; train.epochs or train.max_steps may be raised")
    else:
        start = JobStart(
            recipe=recipe,
            overrides=overrides,
            num_workers=placement.num_ranks,
            binds=binds,
            run_dir=run_dir,
            total_steps=prepared.job.total_steps,
            grace_seconds=prepared.recipe.fault.grace_seconds,
            launcher=launcher,
            kernels=kernels.asked_for,
            silence_seconds=prepared.recipe.fault.silence_seconds,
            survives=recovers_in_place(prepared.recipe),
            num_spares=prepared.recipe.fault.spares,
            more_options=asked_for.mpi_options(),
            placement=placement,
            most_workers=min(prepared.recipe.train.shards or 1, placement.most_ranks or sys.maxsize),
            interfaces=tuple(own_interfaces(placement)),
            coordinator_shell=coordinator_shell,
        )
        if placement.spans_hosts:
            # Without the check rank 0 may be where the run directory is not, which says this after the first start.
            start = replace(start, overrides=(*overrides, f"train.shards={prepared.recipe.train.shards}"))
        check = HostCheck(prepared, kernels, view.complain, is_wanted=preflight)
        code = _run(prepared, check.first_start(start), check, asked_for, kernels, view)
        if code != 0:
            return code
        summary = prepared.summary()
    if as_json:
        print_json(summary)
    else:
        summary_table(run_dir, summary)
    return 0


def _check_size(num_ranks: int, min_workers: int) -> None:
    if num_ranks < min_workers:
        raise InputError(f"fault.min_workers: expected at most the number of ranks, {num_ranks}, got {min_workers}")


@dataclass(frozen=True)
class _Invocation:
    """What was asked for on the command line."""

    recipe: str
    overrides: tuple[str, ...]
    num_workers: int | None
    binds: bool
    hosts: str | None
    hostfile: Path | None
    mpi_args: tuple[str, ...]
    coordinator_shell: tuple[str, ...]
    resume: str

    def mpi_options(self) -> tuple[str, ...]:
        """The options of mpirun's own that the user gave, word by word."""
        return tuple(word for argument in self.mpi_args for word in shlex.split(argument))

    def to_go_on(self, run: RunDirectory) -> str:
        """The command that goes on with the run, to be pasted into a shell."""
        beside = Path(sys.executable).parent / "ddp-bp"
        is_on_path = shutil.which("ddp-bp") is not None or not beside.exists()
        command = ["ddp-bp" if is_on_path else str(beside), "train", self.recipe]
        for option, value in (("-n", self.num_workers), ("--hosts", self.hosts), ("--hostfile", self.hostfile)):
            command += [option, str(value)] if value is not None else []
        command += [word for argument in self.mpi_args for word in ("--mpi-arg", argument)]
        command += ["--coordinator-shell", shlex.join(self.coordinator_shell)] if self.coordinator_shell else []
        command += [argument for override in self.overrides for argument in ("--set", override)]
        command += ["--run-dir", str(run.path), *([] if self.binds else ["--no-bind"])]
        if self.resume not in ("auto", "never") and not run.store.entries():
            # It began with the checkpoint of another run, and has none of its own yet.
            command += ["--resume", self.resume]
        return shown_command(command)


def _run(
    prepared: Prepared,
    start: JobStart,
    check: HostCheck,
    asked_for: _Invocation,
    kernels: Kernels,
    view: TrainingView,
) -> int:
    run_dir = prepared.run.path
    with hold_run(run_dir) as hold:
        prepared.create(mpirun=start.mpirun([]), kernels_chosen_by=kernels.why)
        (run_dir / SUMMARY_FILE).unlink(missing_ok=True)
        _introduce(prepared, start, kernels, view)
        with stop_signals() as asked:
            starts = Starts(start, prepared, check, asked, hold, view)
            attempt = starts.run()
        if starts.num_workers != start.num_workers:
            asked_for = replace(asked_for, num_workers=starts.num_workers)
        return _conclude(prepared, attempt, asked, asked_for, view)


def _introduce(prepared: Prepared, start: JobStart, kernels: Kernels, view: TrainingView) -> None:
    """Say what is about to be started."""
    view.say(prepared.job.data.description)
    if start.placement.spans_hosts:
        view.say(f"hosts: {described(start.placement.hosts)}, by {start.placement.source}")
        view.say(f"coordinator.host = {prepared.recipe.coordinator.host}, where the other hosts reach it")
    view.say(kernels.line())
    if kernels.warning:
        warn(kernels.warning)
    due = prepared.recipe.checkpoint
    has_checkpoints, num_spares = bool(due.every_steps or due.every_seconds), start.num_waiting
    line = recovery_line(
        start.launcher,
        prepared.recipe,
        num_workers=start.num_workers,
        has_checkpoints=has_checkpoints,
        num_spares=num_spares,
    )
    view.say(line)
    if start.num_spares > num_spares:
        why = "none could step in for another here"
        if start.num_workers == 1:
            why = "a spare goes on with what another rank still has, and there is one rank alone; take -n 2 or more"
        warn(f"fault.spares: none is started, since {why}")
    if prepared.checkpoint is not None:
        view.say(f"going on from step {prepared.checkpoint.manifest.step}: {prepared.checkpoint.path}")


def _conclude(
    prepared: Prepared, attempt: Attempt, asked: list[str], asked_for: _Invocation, view: TrainingView
) -> int:
    """The exit code, after saying how to go on if training was not finished."""
    if attempt.ending is Ending.WELL:
        if prepared.is_finished():
            # A stop that was asked for after the last step has cut nothing short.
            return 0
        summary = prepared.summary()
        view.say(f"stopped after step {summary['steps']}, saved in {summary['checkpoint']}")
        # Without a signal to us, a worker was told by one of its own, and its exit code says by which.
        code = stop_exit_code(asked) if asked else attempt.exit_code
    elif attempt.ending is Ending.ASKED:
        code = attempt.exit_code
    elif attempt.ending is Ending.DEATH:
        view.complain(f"ddp-bp: training did not finish: {attempt.why}")
        code = 1
    else:
        view.complain("training did not finish; the first error above says why")
        code = 1
    view.say(f"to go on: {asked_for.to_go_on(prepared.run)}")
    return code or 1
