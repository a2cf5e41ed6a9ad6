"""`ddp-bp train`: check everything, start coordinator and workers, show how it goes, and end with one exit code."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import click

from ddp_bp.cli import options
from ddp_bp.cli.kernels import Kernels, settle_kernels
from ddp_bp.cli.output import print_json
from ddp_bp.cli.prepare import Prepared, prepare, warn
from ddp_bp.cli.processes import (
    CoordinatorProcess,
    end_process_group,
    mpirun_command,
    start_coordinator,
    start_mpirun,
)
from ddp_bp.cli.signals import STOP_EXIT_CODES, stop_signals
from ddp_bp.cli.view import TrainingView, shown_command, summary_table
from ddp_bp.coordinator.client import CoordinatorAddress, ToolClient, read_address
from ddp_bp.errors import DdpError
from ddp_bp.worker.rundir import SUMMARY_FILE

POLL_SECONDS = 0.2
COORDINATOR_END_SECONDS = 60.0


@click.command()
@options.recipe_argument
@options.workers_option(required=False)
@options.set_option
@options.run_dir_option
@options.resume_option
@options.bind_option
@click.option(
    "--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout, and the progress on stderr."
)
def train(
    recipe: str,
    num_workers: int,
    overrides: tuple[str, ...],
    run_dir: Path | None,
    resume: str,
    binds: bool,
    as_json: bool,
) -> int:
    """Train RECIPE, a packaged name (see `ddp-bp recipes`) or the path of a .toml file, on N workers.

    Everything is checked before a process is started. Ctrl-C once saves a checkpoint and ends; the same command with
    --run-dir goes on from there, with any number of workers, and ends with the same weights to the bit.
    """
    kernels = settle_kernels(recipe, overrides, run_dir, resume)
    kernels.check()
    run_dir = run_dir or options.default_run_dir(recipe)
    view = TrainingView(to_stderr=as_json)
    with contextlib.redirect_stdout(sys.stderr):  # what a model of the user's own prints is no part of our output
        prepared = prepare(recipe, overrides, num_workers, run_dir, resume)
    summary = prepared.run.finished_summary(prepared.recipe, prepared.job.total_steps)
    is_saved = prepared.checkpoint is not None and prepared.checkpoint.manifest.step == prepared.job.total_steps
    if summary is not None and resume == "auto" and is_saved:
        view.say(f"{run_dir} is trained to the end already; train.epochs or train.max_steps may be raised")
    else:
        code = _run(prepared, _Invocation(recipe, overrides, num_workers, binds), kernels, view)
        if code != 0:
            return code
        summary = json.loads((run_dir / SUMMARY_FILE).read_bytes())
    if as_json:
        print_json(summary)
    else:
        summary_table(run_dir, summary)
    return 0


@dataclass(frozen=True)
class _Invocation:
    """What was asked for on the command line."""

    recipe: str
    overrides: tuple[str, ...]
    num_workers: int
    binds: bool

    def to_go_on(self, run_dir: Path) -> str:
        """The command that goes on with the run, to be pasted into a shell."""
        beside = Path(sys.executable).parent / "ddp-bp"
        is_on_path = shutil.which("ddp-bp") is not None or not beside.exists()
        command = ["ddp-bp" if is_on_path else str(beside), "train", self.recipe]
        command += ["-n", str(self.num_workers), *self.set_options(), "--run-dir", str(run_dir), *self.bind_options()]
        return shown_command(command)

    def set_options(self) -> list[str]:
        return [argument for override in self.overrides for argument in ("--set", override)]

    def bind_options(self) -> list[str]:
        return [] if self.binds else ["--no-bind"]


def _run(prepared: Prepared, asked_for: _Invocation, kernels: Kernels, view: TrainingView) -> int:
    run_dir, num_workers = prepared.run.path, asked_for.num_workers
    resume = str(prepared.checkpoint.path) if prepared.checkpoint else "never"
    arguments = ["worker", asked_for.recipe, "--run-dir", str(run_dir), "--resume", resume, *asked_for.set_options()]
    arguments += asked_for.bind_options()
    mpirun = mpirun_command(num_workers, [], kernels.asked_for)
    prepared.run.create(prepared.recipe, prepared.environment(mpirun=mpirun, kernels_chosen_by=kernels.why))
    (run_dir / SUMMARY_FILE).unlink(missing_ok=True)
    view.say(prepared.job.data.description)
    view.say(kernels.line())
    if kernels.warning:
        warn(kernels.warning)
    if prepared.checkpoint is not None:
        view.say(f"going on from step {prepared.checkpoint.manifest.step}: {prepared.checkpoint.path}")
    with stop_signals() as asked:
        coordinator = start_coordinator(
            asked_for.recipe, asked_for.overrides, num_workers, run_dir, prepared.job.total_steps
        )
        try:
            address = read_address(run_dir)
            command = mpirun_command(
                num_workers,
                [*arguments, "--coordinator", address.address, "--world-size", str(num_workers), "--supervised"],
                kernels.asked_for,
            )
            view.say(f"coordinator {address.url} (live page, /metrics, /api/status)")
            view.say(shown_command(command))
            ended_well = _watch(start_mpirun(command), coordinator, address, asked, view)
        finally:
            coordinator.release()
    return _conclude(prepared, ended_well, asked, asked_for, view)


def _watch(
    mpirun: subprocess.Popen[bytes],
    coordinator: CoordinatorProcess,
    address: CoordinatorAddress,
    asked: list[str],
    view: TrainingView,
) -> bool:
    """Show the job until mpirun has ended; whether the coordinator says that it ended in good order."""
    forwarding = [_forward(stream, view, name) for name, stream in (("out", mpirun.stdout), ("err", mpirun.stderr))]
    told = 0
    try:
        with view.live():
            while mpirun.poll() is None:
                if len(asked) > told:
                    told = len(asked)
                    if told > 1:
                        view.say("ending at once")
                        break
                    view.say(f"{asked[0]}: saving a checkpoint, then ending; once more ends at once")
                    _tell_to_stop(address, asked[0], view)
                if (coordinator.process.poll() or 0) < 0:
                    number = -coordinator.process.returncode
                    view.complain(
                        f"ddp-bp: the coordinator was killed by {signal.Signals(number).name}; ending the job"
                    )
                    break
                view.refresh(address.url)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    mpirun.wait(POLL_SECONDS)
            view.refresh(address.url)
            if told < 2 and (mpirun.poll() or 0) < 0:
                view.complain(f"ddp-bp: mpirun was killed by {signal.Signals(-mpirun.returncode).name}")
    finally:
        end_process_group(mpirun)
        for thread in forwarding:
            thread.join(2.0)
        coordinator.release()
    code = coordinator.wait(COORDINATOR_END_SECONDS)
    if mpirun.returncode != 0 and code == 0 and told <= 1:
        view.say(f"mpirun ended with exit code {mpirun.returncode}, after every rank had finished")
    return code == 0


def _conclude(
    prepared: Prepared, ended_well: bool, asked: list[str], asked_for: _Invocation, view: TrainingView
) -> int:
    """The exit code, after saying how to go on if training was not finished."""
    run_dir = prepared.run.path
    if ended_well and prepared.run.finished_summary(prepared.recipe, prepared.job.total_steps) is not None:
        # A stop that was asked for after the last step has cut nothing short.
        return 0
    if ended_well and (run_dir / SUMMARY_FILE).exists():
        summary = json.loads((run_dir / SUMMARY_FILE).read_bytes())
        view.say(f"stopped after step {summary['steps']}, saved in {summary['checkpoint']}")
        # Without a signal to us, a worker was told by one of its own.
        asked = asked or ["SIGTERM"]
    elif len(asked) < 2:
        view.complain("training did not finish; the first error above says why")
        asked = []
    view.say(f"to go on: {asked_for.to_go_on(run_dir)}")
    return STOP_EXIT_CODES[asked[0]] if asked else 1


def _tell_to_stop(address: CoordinatorAddress, signal_name: str, view: TrainingView) -> None:
    try:
        with ToolClient(address.address, address.run_id) as client:
            client.stop(signal_name)  # type: ignore[arg-type]
    except DdpError as error:
        view.complain(f"ddp-bp: the workers could not be told: {error}")


def _forward(stream: IO[bytes] | None, view: TrainingView, name: str) -> threading.Thread:
    """Pass on what the workers print, line by line."""
    assert stream is not None

    def run() -> None:
        for line in stream:
            text = line.decode(errors="replace").rstrip("\n")
            if name == "err":
                view.complain(text)
            else:
                view.say(text)

    thread = threading.Thread(target=run, name=f"forward std{name}", daemon=True)
    thread.start()
    return thread
