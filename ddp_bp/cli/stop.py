"""`ddp-bp stop`: end a running job in good order, from anywhere that reaches its coordinator or its run directory."""

from __future__ import annotations

from pathlib import Path

import click

from ddp_bp.cli import options
from ddp_bp.cli.run_hold import ask_to_stop
from ddp_bp.coordinator.client import ToolClient, read_address
from ddp_bp.errors import AddressError, DeadlineError


@click.command()
@options.run_dir_argument
def stop(run_dir: Path) -> None:
    """Ask the job that runs in RUN_DIR to save a checkpoint after its next step, and to end.

    Returns once the workers have been told, or, while `ddp-bp train` starts them again, word is left with it. The job
    itself exits with 130, as after Ctrl-C.
    """
    # The ranks that hear it may be about to stop for another reason, so that `train` is told in any case.
    is_left = ask_to_stop(run_dir)
    try:
        address = read_address(run_dir)
        with ToolClient(address.address, address.run_id) as client:
            client.stop("user")
    except (AddressError, DeadlineError):
        if not is_left:
            raise
        print(f"{run_dir}: no coordinator answers; `ddp-bp train` stops the job as soon as it may")
