"""`ddp-bp checkpoint`: list and verify what is on the disk, or ask a running job for a checkpoint now."""

from __future__ import annotations

from pathlib import Path

import click

from ddp_bp.checkpoint import CheckpointStore
from ddp_bp.checkpoint.read import verify_checkpoint
from ddp_bp.cli import options
from ddp_bp.cli.output import print_json, print_table, size_text
from ddp_bp.coordinator.client import ToolClient, read_address
from ddp_bp.errors import DistributedError, InputError
from ddp_bp.worker.rundir import CHECKPOINT_FOLDER


@click.group()
def checkpoint() -> None:
    """List, verify or take checkpoints."""


@checkpoint.command("ls")
@options.run_dir_argument
@options.json_option
def list_checkpoints(run_dir: Path, as_json: bool) -> None:
    """List the checkpoints in RUN_DIR, newest first. Digests are not computed; see `verify`."""
    entries = _store(run_dir).entries()
    rows = [
        {
            "step": entry.step,
            "path": str(entry.path),
            "size_bytes": entry.size_bytes,
            "created_utc": entry.manifest.created_utc if entry.manifest else None,
            "train_loss": entry.manifest.train_loss if entry.manifest else None,
            "eval_loss": entry.manifest.eval_loss if entry.manifest else None,
            "eval_accuracy": entry.manifest.eval_accuracy if entry.manifest else None,
            "weights_sha256": entry.manifest.weights_sha256 if entry.manifest else None,
            "problem": entry.problem,
        }
        for entry in entries
    ]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("step", "size", "created", "train loss", "eval loss", "eval accuracy", "weights sha256", "problem"),
        [
            (
                row["step"],
                size_text(entry.size_bytes),
                row["created_utc"],
                row["train_loss"],
                row["eval_loss"],
                row["eval_accuracy"],
                str(row["weights_sha256"] or "-")[:12],
                row["problem"] or "",
            )
            for row, entry in zip(rows, entries, strict=True)
        ],
    )


@checkpoint.command()
@click.argument("path", type=click.Path(path_type=Path))
@options.json_option
def verify(path: Path, as_json: bool) -> int:
    """Verify every digest of the checkpoints in a run directory, or of one checkpoint's folder.

    Exit code 1 if any of them is damaged.
    """
    if (path / CHECKPOINT_FOLDER).is_dir():
        paths = [entry.path for entry in _store(path).entries()]
    elif path.is_dir():
        paths = [path]
    else:
        raise InputError(f"{path}: expected a run directory or the folder of a checkpoint, found none")
    results = [{"path": str(folder), "problems": verify_checkpoint(folder)} for folder in paths]
    if as_json:
        print_json(results)
    else:
        print_table(
            ("checkpoint", "verdict"), [(row["path"], "; ".join(row["problems"]) or "valid") for row in results]
        )
    return 1 if any(row["problems"] for row in results) else 0


@checkpoint.command()
@options.run_dir_argument
@options.json_option
def now(run_dir: Path, as_json: bool) -> None:
    """Ask the job that runs in RUN_DIR for a checkpoint, and wait until it is on the disk."""
    address = read_address(run_dir)
    with ToolClient(address.address, address.run_id) as client:
        done = client.request_checkpoint()
    if not done.ok:
        raise DistributedError(f"the checkpoint was not saved: {done.message}")
    if as_json:
        print_json({"step": done.step, "path": done.path})
    else:
        print_table(("step", "path"), [(done.step, done.path)])


def _store(run_dir: Path) -> CheckpointStore:
    folder = run_dir / CHECKPOINT_FOLDER
    if not folder.is_dir():
        raise InputError(f"{run_dir}: expected a run directory, found no folder {CHECKPOINT_FOLDER!r} in it")
    return CheckpointStore(folder)
