"""What two runs of the slow recipe must have in common, however they were interrupted."""

from __future__ import annotations

import json
from pathlib import Path

from support import ddp_bp, processes_of, run_to_end, summary_of

HASHES = ("weights_sha256", "ledger_sha256", "train_loss", "eval_loss", "eval_accuracy", "steps", "samples")


def assert_same(summary: dict, reference: dict) -> None:
    assert {key: summary[key] for key in HASHES} == {key: reference[key] for key in HASHES}


def assert_ledger_is_one_history(run_dir: Path, summary: dict) -> None:
    """Each step once, and each sample once in each of the three epochs."""
    records = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(summary["steps"]))
    assert records[-1]["chain"] == summary["ledger_sha256"]
    for epoch in range(3):
        assert sum(record["samples"] for record in records if record["epoch"] == epoch) == 1438


def assert_is_the_same_run(run_dir: Path, undisturbed: dict) -> dict:
    """The summary of a job that has ended, with the weights and the ledger of the other one, and no process left."""
    summary = summary_of(run_dir)
    assert_same(summary, undisturbed)
    assert_ledger_is_one_history(run_dir, summary)
    assert run_to_end(ddp_bp("ledger", "verify", run_dir), 60).returncode == 0
    assert processes_of(run_dir) == []
    return summary
