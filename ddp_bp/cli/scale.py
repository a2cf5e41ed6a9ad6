"""`ddp-bp scale`: let a running job go on with more or fewer ranks."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import click

from ddp_bp.cli import options
from ddp_bp.cli.output import seconds_text
from ddp_bp.cli.view import fetch_status
from ddp_bp.coordinator.client import ToolClient, read_address
from ddp_bp.errors import AddressError, DeadlineError, LaunchError

POLL_SECONDS = 0.1
_GONE_SECONDS = 20.0
"""How long there may be no coordinator between two starts."""


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
    result is the same to the bit.
    """
    began, address = time.monotonic(), read_address(run_dir)
    with ToolClient(address.address, address.run_id) as client:
        before = client.status()
        client.scale(num_workers)
    if before["world_size"] == num_workers:
        print(f"{run_dir} trains on {num_workers} ranks already")
        return
    if timeout_seconds == 0:
        return
    step = _wait(run_dir, num_workers, began + timeout_seconds)
    took = seconds_text(time.monotonic() - began)
    print(f"{run_dir}: {before['world_size']} -> {num_workers} ranks, training from step {step} on, after {took}")


def _wait(run_dir: Path, num_workers: int, deadline: float) -> int:
    """The first step seen of a job of that many ranks."""
    seen_at = time.monotonic()
    while (now := time.monotonic()) < deadline:
        status = None
        with contextlib.suppress(AddressError):
            status = fetch_status(read_address(run_dir).url)
        if status is not None:
            seen_at = now
            if status["state"] == "training" and status["world_size"] == num_workers:
                return int(status["step"])
            if status["state"] in ("finished", "failed"):
                raise LaunchError(f"the job {status['state']} before it went on with {num_workers} ranks")
        elif now - seen_at > _GONE_SECONDS:
            raise LaunchError(f"the job has ended, and nobody went on with {num_workers} ranks; see what `train` says")
        time.sleep(POLL_SECONDS)
    raise DeadlineError(f"{run_dir} does not train on {num_workers} ranks yet; see `ddp-bp status {run_dir}`")
