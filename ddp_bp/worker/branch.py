"""A run that begins with a checkpoint of another one: its ledger begins with the lines that lead to that checkpoint.

So the ledger is one history from the first step on, which can be verified where it lies. Looks for the other ledger
where a run directory has it, and believes it by its hash alone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path

from ddp_bp.checkpoint import Checkpoint
from ddp_bp.errors import InputError
from ddp_bp.worker.ledger import read_record
from ddp_bp.worker.rundir import LEDGER_FILE


def take_over_ledger(run_dir: Path, checkpoint: Checkpoint | None, warn: Callable[[str], None]) -> None:
    """Give a run without a ledger the lines of the steps before `checkpoint`, where that belongs to another run.

    `warn` is told if they cannot be had: the run is as good, but its ledger begins with the checkpoint's step.
    """
    target = run_dir / LEDGER_FILE
    if checkpoint is None or checkpoint.manifest.step == 0 or target.exists():
        return
    source, temporary = checkpoint.path.resolve().parent.parent / LEDGER_FILE, run_dir / f".tmp-{LEDGER_FILE}"
    try:
        _copy_lines(source, temporary, checkpoint.manifest.step, checkpoint.manifest.ledger_sha256)
        temporary.rename(target)
    except (OSError, InputError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        warn(
            f"{target} begins with step {checkpoint.manifest.step}, and `ledger verify` will say so: "
            f"the steps before could not be taken over from {source}: {error}"
        )


def _copy_lines(source: Path, target: Path, num_lines: int, chain_sha256: str) -> None:
    """Copy the first lines, to the disk. Raises InputError if the last one has not that hash, and OSError."""
    line = b""
    with source.open("rb") as old, target.open("wb") as new:
        for line in itertools.islice(old, num_lines):
            new.write(line)
        new.flush()
        os.fsync(new.fileno())
    record = read_record(line, f"{source}, line {num_lines},")
    if (record.step, record.chain) != (num_lines - 1, chain_sha256):
        raise InputError(
            f"expected step {num_lines - 1} with the checkpoint's hash {chain_sha256} in line {num_lines}, "
            f"got step {record.step} with {record.chain}"
        )
