"""Reading what a coordinator has done about ranks that were silent or stuck: the file faults.jsonl of a run."""

from __future__ import annotations

import json
from pathlib import Path

from ddp_bp.coordinator.disk import FAULTS_FILE


def last_eviction(run_dir: Path, since_unix_seconds: float) -> str | None:
    """Who was evicted last, and why, in words; None if nobody was since then."""
    try:
        lines = (run_dir / FAULTS_FILE).read_text().splitlines()
    except OSError:
        return None
    if not lines or (record := json.loads(lines[-1]))["unix_seconds"] < since_unix_seconds:
        return None
    ranks = ", ".join(str(row["rank"]) for row in record["ranks"])
    return f"rank {ranks} was evicted: {record['reason']} for {record['seconds']:.0f} s"
