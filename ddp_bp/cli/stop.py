"""`ddp-bp stop`: end a running job in good order, from anywhere that reaches its coordinator."""

from __future__ import annotations

from pathlib import Path

import click

from ddp_bp.cli import options
from ddp_bp.coordinator.client import ToolClient, read_address


@click.command()
@options.run_dir_argument
def stop(run_dir: Path) -> None:
    """Ask the job that runs in RUN_DIR to save a checkpoint after its next step, and to end.

    Returns once the workers have been told. The job itself exits with 130, as after Ctrl-C.
    """
    address = read_address(run_dir)
    with ToolClient(address.address, address.run_id) as client:
        client.stop("user")
