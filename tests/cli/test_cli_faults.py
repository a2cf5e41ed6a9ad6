"""What the end of a job is put down to: an eviction that was a moment ago, and no older one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from ddp_bp.cli.faults import RECENT_SECONDS, last_fault
from ddp_bp.coordinator.disk import FAULTS_FILE


def line(unix_seconds: float) -> str:
    record = {
        "unix_seconds": unix_seconds,
        "event": "evicted",
        "reason": "silent",
        "seconds": 30.2,
        "ranks": [{"rank": 1}, {"rank": 2}],
    }
    return json.dumps(record) + "\n"


@pytest.mark.parametrize(
    ("age_seconds", "began_seconds_ago", "found"),
    [(1.0, 60.0, True), (61.0, 60.0, False), (RECENT_SECONDS + 5, 3600.0, False)],
)
def test_only_a_recent_eviction_of_this_start_counts(
    tmp_path: Path, age_seconds: float, began_seconds_ago: float, found: bool
) -> None:
    now = time.time()
    (tmp_path / FAULTS_FILE).write_text(line(now - 9999) + line(now - age_seconds))
    why = last_fault(tmp_path, now - began_seconds_ago)
    assert why == ("rank 1, 2 was evicted: silent for 30 s" if found else None)


def test_a_job_that_was_given_up_says_why_by_itself(tmp_path: Path) -> None:
    record = {"unix_seconds": time.time(), "event": "not gone on", "why": "MPI waits for rank 2"}
    (tmp_path / FAULTS_FILE).write_text(line(time.time()) + json.dumps(record) + "\n")
    assert last_fault(tmp_path, 0.0) == "MPI waits for rank 2"


@pytest.mark.parametrize("content", [None, "", '{"unix_seconds": 1', "{}"])
def test_a_file_that_is_not_there_or_torn_says_nothing(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / FAULTS_FILE).write_text(content)
    assert last_fault(tmp_path, 0.0) is None
