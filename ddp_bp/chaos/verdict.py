"""Comparing a run that was disturbed with one that was not: every bit of the result, and its ledger. Starts nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from ddp_bp.errors import DdpError
from ddp_bp.worker.rundir import SUMMARY_FILE, RunDirectory
from ddp_bp.worker.verify import verify_run

SAME: Final = (
    "weights_sha256",
    "ledger_sha256",
    "steps",
    "samples",
    "shards",
    "skipped_steps",
    "train_loss",
    "eval_loss",
    "eval_accuracy",
)
"""What of a summary does not depend on who died."""


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """The summary of a run, or None if it was not finished."""
    try:
        summary = json.loads((run_dir / SUMMARY_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def differences(undisturbed: dict[str, Any], summary: dict[str, Any]) -> list[str]:
    """What the summary of a disturbed run says otherwise than that of the undisturbed one."""
    return [
        f"{key}: expected {undisturbed.get(key)}, as undisturbed, got {summary.get(key)}"
        for key in SAME
        if undisturbed.get(key) != summary.get(key)
    ]


def problems_of_run(run_dir: Path, undisturbed: dict[str, Any] | None) -> list[str]:
    """Everything that is wrong with a finished run: its numbers, its ledger, its newest checkpoint.

    `undisturbed`: what its summary is to say; None: whatever it says.
    """
    summary = read_summary(run_dir)
    if summary is None:
        return [f"there is no {SUMMARY_FILE}: training did not finish"]
    found = [] if undisturbed is None else differences(undisturbed, summary)
    run = RunDirectory(run_dir)
    try:
        verification = verify_run(run)
        found += [
            f"ledger{'' if problem.step is None else f', step {problem.step}'}: {problem.problem}"
            for problem in verification.problems
        ]
        entries = run.store.entries()
        newest = entries[0] if entries else None
        if newest is None or newest.step != summary["steps"]:
            found.append(f"expected a checkpoint of the last step, {summary['steps']}, got {newest and newest.step}")
        else:
            found += [f"checkpoint {newest.path.name}: {problem}" for problem in run.store.verify(newest.path)]
    except DdpError as error:
        found.append(str(error))
    return found
