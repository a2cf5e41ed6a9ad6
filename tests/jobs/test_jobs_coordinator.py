"""The coordinator of a real job is killed, or stopped: no rank notices, no counter falls, no line is lost."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from pathlib import Path

import pytest
from job_histories import assert_ledger_is_one_history, assert_same
from prometheus_client.parser import text_string_to_metric_families
from support import ddp_bp, mpirun, processes_of, status_of, summary_of, wait_for_step, wait_until

from ddp_bp.coordinator.address import read_address
from ddp_bp.errors import AddressError

pytestmark = pytest.mark.mpi


def counters(run_dir: Path) -> dict[tuple[str, str], float]:
    """Every series that may not fall."""
    with urllib.request.urlopen(f"{read_address(run_dir).url}metrics", timeout=5) as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    return {
        (sample.name, repr(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if family.type in ("counter", "histogram")
    }


def kill_coordinator(run_dir: Path) -> None:
    """Kill it, and wait until another process is in its place and knows all ranks."""
    before, shown = read_address(run_dir), counters(run_dir)
    os.kill(before.pid, signal.SIGKILL)
    began = time.monotonic()

    def is_back() -> bool:
        try:
            return read_address(run_dir).pid != before.pid and status_of(run_dir) is not None
        except AddressError:
            return False

    wait_until(is_back, "another coordinator", 20)
    # Otherwise within 1.5 s; the rest is for a machine with other things to do.
    assert time.monotonic() - began < 5
    after = read_address(run_dir)
    assert (after.address, after.url) == (before.address, before.url)
    now = counters(run_dir)
    assert {series: value for series, value in shown.items() if now.get(series, -1) < value} == {}
    wait_until(lambda: status_of(run_dir)["ready"], "all ranks to be here again", 10)  # type: ignore[index]


def test_train_starts_a_killed_coordinator_again_and_no_rank_notices(
    start_command, run_ddp_bp, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir = tmp_path / "run"
    process = start_command(
        ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, "--set", "checkpoint.every_steps=1")
    )
    pids = [row["pid"] for row in wait_for_step(run_dir, 5)["ranks"]]
    for step in (5, 25):
        wait_for_step(run_dir, step)
        kill_coordinator(run_dir)
    assert [row["pid"] for row in status_of(run_dir)["ranks"]] == pids  # type: ignore[index]
    # And once in the very end, when the last checkpoint is under way or the summary is.
    wait_for_step(run_dir, 63)
    os.kill(read_address(run_dir).pid, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    said = "ddp-bp: the coordinator was killed by SIGKILL; another process has taken its place, and no rank waited"
    assert stderr.splitlines().count(said) >= 2
    assert "ddp-bp: restart" not in stderr and "the ledger has no lines" not in stderr
    summary = summary_of(run_dir)
    assert summary["recoveries"] == 0 and summary["resumed_from_step"] is None
    assert_same(summary, undisturbed)
    assert_ledger_is_one_history(run_dir, summary)
    verified = run_ddp_bp("ledger", "verify", run_dir)
    assert verified.returncode == 0, verified.stdout
    evaluations = [line for line in (run_dir / "metrics.jsonl").read_text().splitlines() if "eval_loss" in line]
    assert sorted({json.loads(line)["step"] for line in evaluations}) == [21, 42, 63]
    assert processes_of(run_dir) == []


def test_rank_0_starts_a_killed_coordinator_of_its_own_again(
    start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir = tmp_path / "run"
    process = start_command([*mpirun(2), *ddp_bp("worker", slow_recipe, "--run-dir", run_dir)])
    wait_for_step(run_dir, 10)
    kill_coordinator(run_dir)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "the coordinator was killed by SIGKILL; another process has taken its place" in stderr
    summary = summary_of(run_dir)
    assert_same(summary, undisturbed)
    assert_ledger_is_one_history(run_dir, summary)


def test_a_coordinator_that_does_not_answer_any_more_is_replaced(
    start_command, run_ddp_bp, slow_recipe: Path, undisturbed: dict, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    options = ["--set", "model.options.sleep_seconds=0.3"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, *options))
    wait_for_step(run_dir, 3)
    stopped = read_address(run_dir)
    os.kill(stopped.pid, signal.SIGSTOP)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "the coordinator has not answered for 20 s, and is killed" in stderr
    assert "the coordinator was killed by SIGKILL; another process has taken its place, and no rank waited" in stderr
    summary = summary_of(run_dir)
    assert (summary["recoveries"], summary["weights_sha256"]) == (0, undisturbed["weights_sha256"])
    assert json.loads(run_ddp_bp("ledger", "verify", run_dir, "--json").stdout)["valid"]
    assert processes_of(run_dir) == []
