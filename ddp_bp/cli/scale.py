"""`ddp-bp scale`: let a running job go on with more or fewer ranks."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import click

from ddp_bp.cli import options
from ddp_bp.cli.output import seconds_text
from ddp_bp.cli.resize import ranks_text
from ddp_bp.cli.run_hold import is_held
from ddp_bp.cli.view import fetch_status
from ddp_bp.coordinator.client import ToolClient, read_address
from ddp_bp.errors import AddressError, DeadlineError, LaunchError
from ddp_bp.worker.rundir import SUMMARY_FILE

POLL_SECONDS = 0.1
START_SECONDS = 60.0
"""How long a job may take to start anew."""


@click.command()
@options.run_dir_argument
@options.workers_option(required=True)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until the job trains with so many; 0: do not wait.",
)
def scale(run_dir: Path, num_workers: int, timeout_seconds: float) -> None:
    """Let the job in RUN_DIR, started by `ddp-bp train`, go on with N ranks: at most one for each of its shards.

    It saves a checkpoint after its next step and starts N ranks from there. No step is lost or done twice, and the
    result is the same to the bit. If N ranks cannot be started it goes on with as many as before. While it is being
    started the command waits, up to a minute, for somebody to ask.
    """
    began = time.monotonic()
    before = _ask(run_dir, num_workers, began + max(timeout_seconds, START_SECONDS))
    if before["world_size"] == num_workers:
        print(f"{run_dir} trains on {num_workers} ranks already")
        return
    if timeout_seconds == 0:
        return
    step = _wait(run_dir, num_workers, before, began + timeout_seconds)
    took = seconds_text(time.monotonic() - began)
    print(f"{run_dir}: {before['world_size']} -> {ranks_text(num_workers)}, training from step {step} on, after {took}")


def _ask(run_dir: Path, num_workers: int, deadline: float) -> dict[str, Any]:
    """Ask for that many ranks, as soon as there is somebody to ask: how the job was doing then.

    Raises:
        InputError: there cannot be so many, or no job is running.
        DeadlineError: nobody was there to ask.
    """
    while True:
        try:
            address = read_address(run_dir)
            with ToolClient(address.address, address.run_id) as client:
                status = client.status()
                if not _is_being_started(status) or not is_held(run_dir):
                    client.scale(num_workers)
                    return status
        except (AddressError, DeadlineError):
            # A coordinator that is gone may have left its address.
            if not is_held(run_dir):
                raise
        if time.monotonic() > deadline:
            raise DeadlineError(f"{run_dir}: the job is being started for very long; see what `train` says")
        time.sleep(POLL_SECONDS)


def _is_being_started(status: dict[str, Any]) -> bool:
    """Whether the job will train, or train again, without anybody's doing."""
    return status["state"] == "waiting" or (
        status["state"] == "stopping" and status["stop_cause"] in ("resize", "respawn")
    )


def _wait(run_dir: Path, num_workers: int, before: dict[str, Any], deadline: float) -> int:
    """The first step seen of a job of that many ranks; the last one if it has trained to the end already.

    Raises:
        LaunchError: the job has ended without ever having had so many, or has gone on with another number of them.
        DeadlineError: it has not so many yet.
    """
    while time.monotonic() < deadline:
        status = None
        with contextlib.suppress(AddressError):
            status = fetch_status(read_address(run_dir).url)
        if status is not None:
            if status["state"] == "training":
                if status["world_size"] == num_workers:
                    return int(status["step"])
                if _num_starts(status) > _num_starts(before) and status["wanted_world_size"] is None:
                    number = ranks_text(status["world_size"])
                    raise LaunchError(f"the job goes on with {number}; `train` says why not with {num_workers}")
            if status["state"] == "failed":
                raise LaunchError(f"the job failed before it went on with {ranks_text(num_workers)}")
        elif (summary := _summary(run_dir)) is not None and summary["steps"] == before["total_steps"]:
            if summary["world_size"] == num_workers:
                return int(summary["steps"])
            raise LaunchError(f"the job finished before it went on with {ranks_text(num_workers)}")
        time.sleep(POLL_SECONDS)
    raise DeadlineError(f"{run_dir} does not train on {ranks_text(num_workers)} yet; see what `train` says")


def _num_starts(status: dict[str, Any]) -> int:
    return int(status["restarts"] + status["resizes"])


def _summary(run_dir: Path) -> dict[str, Any] | None:
    try:
        summary: dict[str, Any] = json.loads((run_dir / SUMMARY_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return summary
