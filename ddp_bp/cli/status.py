"""`ddp-bp status`: how a running job is doing, from its coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ddp_bp.cli import options
from ddp_bp.cli.output import print_json, print_table, seconds_text, size_text
from ddp_bp.coordinator.client import ToolClient, read_address


@click.command()
@options.run_dir_argument
@options.json_option
def status(run_dir: Path, as_json: bool) -> None:
    """Show the state, progress, ranks and checkpoints of the job that runs in RUN_DIR."""
    address = read_address(run_dir)
    with ToolClient(address.address, address.run_id) as client:
        answer = client.status()
    if as_json:
        print_json({**answer, "url": address.url})
        return
    print_table(("job", ""), _job_rows(answer, address.url))
    print()
    print_table(
        ("rank", "host", "pid", "step", "doing", "last step", "backward", "waiting for ranks"),
        [
            (
                rank["rank"],
                rank["hostname"],
                rank["pid"],
                rank["step"],
                _doing(rank),
                seconds_text(rank["last_step_age_seconds"]),
                seconds_text(rank["backward_seconds_mean"]),
                seconds_text(rank["rank_wait_seconds_mean"]),
            )
            for rank in answer["ranks"]
        ],
    )


def _doing(rank: dict[str, Any]) -> str:
    what: str = (rank["doing"] or rank["phase"]) if rank["connected"] else "gone"
    if rank["suspected"]:
        return f"{rank['suspected']} for {seconds_text(rank['suspected_seconds'])}: {what}"
    return what


def _job_rows(answer: dict[str, Any], url: str) -> list[tuple[str, object]]:
    checkpoints = answer["checkpoints"]
    step = answer["step"] if answer["total_steps"] is None else f"{answer['step']} of {answer['total_steps']}"
    return [
        ("state", answer["state"]),
        ("recipe", answer["recipe"]),
        ("step", step),
        ("epoch", answer["epoch"]),
        ("train loss", answer["train_loss"] and f"{answer['train_loss']:.5f}"),
        ("eval loss", answer["eval_loss"] and f"{answer['eval_loss']:.5f}"),
        ("eval accuracy", answer["eval_accuracy"] and f"{answer['eval_accuracy']:.2%}"),
        ("samples/s", answer["samples_per_second"] and round(answer["samples_per_second"])),
        ("last checkpoint", checkpoints["last_path"]),
        ("its size", size_text(checkpoints["last_bytes"])),
        ("failed checkpoints", checkpoints["failures"]),
        ("page", url),
    ]
