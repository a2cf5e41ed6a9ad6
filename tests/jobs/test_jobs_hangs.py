"""Ranks that stop or hang in a real job: they are named, shown, evicted, and the job ends with the same bits."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from job_histories import assert_is_the_same_run, assert_ledger_is_one_history, assert_same
from support import ddp_bp, mpirun, processes_of, run_to_end, status_of, summary_of, wait_for_step, wait_until

pytestmark = pytest.mark.mpi


def series(run_dir: Path, name: str) -> dict[str, float]:
    """The series of a metric, by their labels as they stand."""
    url = json.loads((run_dir / "coordinator.json").read_bytes())["url"]
    with urllib.request.urlopen(f"{url}metrics", timeout=5) as reply:
        lines = [line.rpartition(" ") for line in reply.read().decode().splitlines() if line.startswith(f"{name}{{")]
    return {labels.partition("{")[2].rstrip("}"): float(value) for labels, _, value in lines}


def suspected(run_dir: Path) -> list[str]:
    return [labels for labels, value in series(run_dir, "ddp_bp_rank_suspected").items() if value]


def faults_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "faults.jsonl").read_text().splitlines()]


def test_a_stopped_rank_is_named_within_2_s_and_evicted_and_costs_no_bit(
    start_command, run_ddp_bp, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir = tmp_path / "run"
    options = ["--run-dir", run_dir, "--set", "fault.silence_seconds=5", "--set", "fault.recovery=restart"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, *options))
    pid = wait_for_step(run_dir, 10)["ranks"][1]["pid"]
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    wait_until(lambda: suspected(run_dir) == ['rank="1",reason="silent"'], "rank 1 to be named", 5)
    # Otherwise after 1.5 s; the rest is for a machine with other things to do.
    assert time.monotonic() - began < 2.5
    row = status_of(run_dir)["ranks"][1]  # type: ignore[index]
    assert row["suspected"] == "silent" and row["doing"] is not None
    shown = run_ddp_bp("stacks", run_dir)
    assert f"rank 1, process {pid} on {os.uname().nodename}: does not answer; last heard of " in shown.stdout
    assert "conclude (" in shown.stdout and "rank 0, process" in shown.stdout
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "ddp-bp: restart 1 of 3: rank 1 was evicted: silent for 5 s; going on from step " in stderr
    (fault,) = faults_of(run_dir)
    assert (fault["reason"], fault["done"], fault["ranks"][0]["pid"]) == ("silent", {"1": "killed"}, pid)
    assert [row["threads"] is None for row in fault["stacks"]] == [False, True]
    summary = summary_of(run_dir)
    assert summary["recoveries"] == 1
    assert_same(summary, undisturbed)
    assert_ledger_is_one_history(run_dir, summary)
    assert processes_of(run_dir) == []


@pytest.mark.ulfm
def test_a_stopped_rank_is_evicted_also_when_all_others_have_been_killed(
    start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir = tmp_path / "run"
    options = ["--run-dir", run_dir, "--set", "fault.silence_seconds=2"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 3, *options))
    pids = [row["pid"] for row in wait_for_step(run_dir, 10)["ranks"]]
    os.kill(pids[1], signal.SIGSTOP)
    for pid in (pids[0], pids[2]):
        os.kill(pid, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "ddp-bp: restart 1 of 3: rank 1 was evicted: silent for 2 s; going on from step " in stderr
    assert [fault["done"] for fault in faults_of(run_dir)] == [{"1": "killed"}]
    summary = summary_of(run_dir)
    assert summary["world_size"] == 3
    assert_same(summary, undisturbed)


@pytest.mark.ulfm
def test_the_others_go_on_in_place_without_a_rank_that_is_evicted(
    start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir = tmp_path / "run"
    options = ["--run-dir", run_dir, "--set", "fault.silence_seconds=2"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 3, *options))
    pid = wait_for_step(run_dir, 10)["ranks"][1]["pid"]
    os.kill(pid, signal.SIGSTOP)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "rank 1 has died; 2 of 3 ranks go on from step " in stderr and "restart" not in stderr
    (fault,) = faults_of(run_dir)
    assert (fault["reason"], fault["done"], fault["ranks"][0]["pid"]) == ("silent", {"1": "killed"}, pid)
    summary = assert_is_the_same_run(run_dir, undisturbed)
    assert (summary["recoveries"], summary["world_size"], summary["resumed_from_step"]) == (1, 2, None)


def test_a_rank_that_hangs_is_shown_to_the_line_and_evicted_and_costs_no_bit(
    start_command, run_ddp_bp, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir = tmp_path / "run"
    options = ["--run-dir", run_dir, "--set", "fault.hang_seconds=4", "--set", "fault.recovery=restart"]
    options += ["--set", "model.factory=job_models:hanging"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, *options))
    wait_until((tmp_path / "hung").exists, "rank 1 to hang", 60)
    wait_until(lambda: suspected(run_dir) == ['rank="1",reason="stuck"'], "rank 1 to be named", 5)
    result = run_ddp_bp("stacks", run_dir, "--json")
    assert result.returncode == 0, result.stderr
    rank_0, rank_1 = json.loads(result.stdout)
    assert (rank_0["phase"], rank_1["phase"]) == ("waiting", "forward")
    main = rank_1["threads"][0]
    assert main["name"] == "MainThread" and main["frames"][-1].startswith("forward (")
    assert "job_models.py:" in main["frames"][-1]
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "ddp-bp: restart 1 of 3: rank 1 was evicted: stuck for 4 s; going on from step " in stderr
    (fault,) = faults_of(run_dir)
    assert (fault["reason"], fault["done"]) == ("stuck", {"1": "killed"})
    summary = summary_of(run_dir)
    assert summary["recoveries"] == 1
    assert_same(summary, undisturbed)
    assert_ledger_is_one_history(run_dir, summary)


@pytest.mark.parametrize(
    ("at", "why"),
    [
        ("loading", "no rank has joined within fault.start_seconds = 15"),
        ("joining", "rank 1 has not joined within fault.silence_seconds = 2 of the first one"),
        ("preparing", "rank 1 was evicted: silent for 2 s"),
    ],
)
def test_a_rank_that_stops_before_the_first_step_keeps_nobody_waiting_for_good(
    start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict, at: str, why: str
) -> None:
    run_dir = tmp_path / "run"
    options = ["--run-dir", run_dir, "--set", "model.factory=job_models:stopping", "--set", f"model.options.at={at}"]
    options += ["--set", "fault.silence_seconds=2", "--set", "fault.start_seconds=15"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, *options))
    wait_until((tmp_path / "stopped").exists, "rank 1 to stop")
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 0, stderr
    assert f"ddp-bp: restart 1 of 3: {why}" in stderr and "restart 2" not in stderr and "Traceback" not in stderr
    assert_same(summary_of(run_dir), undisturbed)
    assert processes_of(run_dir) == []


@pytest.mark.parametrize("at", ["loading", "joining"])
def test_a_rank_that_stops_before_the_first_step_ends_a_job_of_the_users_own_mpirun(
    slow_recipe: Path, tmp_path: Path, at: str
) -> None:
    run_dir = tmp_path / "run"
    options = ["--run-dir", run_dir, "--set", "model.factory=job_models:stopping", "--set", f"model.options.at={at}"]
    options += ["--set", "fault.silence_seconds=2", "--set", "fault.start_seconds=15"]
    result = run_to_end([*mpirun(2), *ddp_bp("worker", slow_recipe, *options)], 60)
    assert result.returncode != 0 and (tmp_path / "stopped").exists()
    if at == "loading":
        assert "Timeout (0:00:15)!" in result.stderr and "in allgather" in result.stderr
    else:
        assert "rank 1 has not joined within fault.silence_seconds = 2 of the first one" in result.stderr
    wait_until(lambda: processes_of(run_dir) == [], "the end of all processes", 10)


@pytest.mark.ulfm
def test_one_rank_is_stopped_and_all_others_and_the_coordinator_are_killed_at_once(
    start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir = tmp_path / "run"
    process = start_command(
        ddp_bp("train", slow_recipe, "-n", 3, "--run-dir", run_dir, "--set", "fault.silence_seconds=2")
    )
    ranks = wait_for_step(run_dir, 10)["ranks"]
    [coordinator] = [one for one in processes_of(run_dir) if "coordinator" in one.cmdline()]
    os.kill(ranks[1]["pid"], signal.SIGSTOP)
    for pid in (coordinator.pid, ranks[0]["pid"], ranks[2]["pid"]):
        os.kill(pid, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "ddp-bp: restart 1 of 3: " in stderr
    assert_same(summary_of(run_dir), undisturbed)
    assert processes_of(run_dir) == []
