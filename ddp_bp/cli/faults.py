"""Reading what a coordinator has done about ranks that were silent, stuck or missing: faults.jsonl of a run."""

from __future__ import annotations

import json
import time
from pathlib import Path

from ddp_bp.coordinator.disk import FAULTS_FILE

RECENT_SECONDS = 120.0
"""How long ago a fault may be that the end of a job is put down to."""


def last_fault(run_dir: Path, since_unix_seconds: float) -> str | None:
    """Who was evicted last, and why, or why the job was given up, in words; None if there was nothing since then, or
    not recently."""
    since = max(since_unix_seconds, time.time() - RECENT_SECONDS)
    try:
        record = json.loads((run_dir / FAULTS_FILE).read_text().splitlines()[-1])
        if record["unix_seconds"] < since:
            return None
        if "why" in record:
            return str(record["why"])
        ranks = ", ".join(str(row["rank"]) for row in record["ranks"])
        return f"rank {ranks} was evicted: {record['reason']} for {record['seconds']:.0f} s"
    except (OSError, ValueError, LookupError):
        # None yet, or the coordinator was killed in the middle of a line.
        return None
