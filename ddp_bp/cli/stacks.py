"""`ddp-bp stacks`: where every rank of a running job is, down to the line of Python, also while it hangs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ddp_bp.cli import options
from ddp_bp.cli.output import print_json, seconds_text
from ddp_bp.coordinator.client import ToolClient, read_address


@click.command()
@options.run_dir_argument
@options.json_option
def stacks(run_dir: Path, as_json: bool) -> None:
    """Show where every rank of the job in RUN_DIR is: host, process, step, phase, and the stack of each Python thread.

    A thread of its own answers in each rank, so that one that hangs answers as well. A process that is stopped, or that
    cannot be reached, is shown with what it was doing when it last said so.
    """
    address = read_address(run_dir)
    with ToolClient(address.address, address.run_id) as client:
        ranks = client.stacks()
    if as_json:
        print_json(ranks)
        return
    for rank in ranks:
        print("\n".join(_lines(rank)))


def _lines(rank: dict[str, Any]) -> list[str]:
    doing = "not in a step yet"
    if rank["phase"] is not None:
        doing = f"step {rank['step']}, {rank['phase']} for {seconds_text(rank['phase_seconds'])}"
    head = f"rank {rank['rank']}, process {rank['pid']} on {rank['hostname']}: "
    if rank["threads"] is None:
        age = seconds_text(rank["heartbeat_age_seconds"])
        return [f"{head}does not answer; last heard of {age} ago, then at {doing}", ""]
    lines = [f"{head}{doing}"]
    for thread in rank["threads"]:
        lines += [f"  thread {thread['name']}", *(f"    {frame}" for frame in thread["frames"])]
    return [*lines, ""]
