"""What happens when processes are killed: the job starts again by itself, or ends and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from pathlib import Path

import psutil
import pytest
from job_histories import assert_ledger_is_one_history, assert_same
from support import (
    ddp_bp,
    leftovers,
    mpi_name,
    processes_of,
    shared_memory,
    status_of,
    summary_of,
    wait_for_step,
    wait_until,
)

pytestmark = pytest.mark.mpi


def mpirun_of(train: int) -> psutil.Process:
    """The mpirun that a process of `ddp-bp train` has started."""
    (process,) = (child for child in psutil.Process(train).children() if child.name() in ("prterun", "mpirun"))
    return process


def assert_nothing_is_left(before: set[Path]) -> None:
    """MPICH's memory has names that only its own processes would take away; the README says so."""
    assert mpi_name() == "MPICH" or leftovers() == before


def wait_for_restart(run_dir: Path, number: int, step: int) -> dict:
    def reached() -> dict | None:
        status = status_of(run_dir)
        return status if status and status["restarts"] == number and status["step"] >= step else None

    return wait_until(reached, f"step {step} after restart {number}")


def test_a_killed_rank_and_then_a_killed_mpirun_cost_a_restart_each_and_no_bit(
    start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir, before = tmp_path / "run", leftovers()
    options = ["--set", "fault.recovery=restart"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, *options))
    first = wait_for_step(run_dir, 10)
    os.kill(first["ranks"][1]["pid"], signal.SIGKILL)
    # So far that a newer checkpoint is durable than that of the first restart.
    second = wait_for_restart(run_dir, 1, 35)
    url = json.loads((run_dir / "coordinator.json").read_bytes())["url"]
    with urllib.request.urlopen(f"{url}metrics") as reply:
        assert "ddp_bp_restarts_total 1.0" in reply.read().decode()
    assert second["address"] == first["address"], "tools find the job where it was"
    mpirun_of(process.pid).kill()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    restarts = [line for line in stderr.splitlines() if line.startswith("ddp-bp: restart")]
    # Hydra knows processes and no ranks.
    who = f"the rank of process {first['ranks'][1]['pid']}" if mpi_name() == "MPICH" else "rank 1"
    assert [line.split(";")[0].replace(os.uname().nodename, "HOST") for line in restarts] == [
        f"ddp-bp: restart 1 of 3: {who} on HOST was killed by SIGKILL",
        "ddp-bp: restart 1 of 3: mpirun was killed by SIGKILL",
    ]
    steps = [int(line.split("going on from step ")[1].split()[0]) for line in restarts]
    assert steps[0] >= 7 and steps[1] >= 14
    summary = summary_of(run_dir)
    assert (summary["recoveries"], summary["resumed_from_step"], summary["world_size"]) == (2, steps[1], 2)
    assert_same(summary, undisturbed)
    assert_ledger_is_one_history(run_dir, summary)
    assert processes_of(run_dir) == []
    assert_nothing_is_left(before)


@pytest.mark.parametrize("stopped", [False, True], ids=["ranks run", "a rank is stopped"])
def test_nothing_is_left_5_s_after_train_and_mpirun_were_killed(
    start_command, run_ddp_bp, slow_recipe: Path, tmp_path: Path, undisturbed: dict, stopped: bool
) -> None:
    run_dir, before = tmp_path / "run", leftovers()
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir))
    status = wait_for_step(run_dir, 10)
    if mpi_name() == "Open MPI":
        segments = shared_memory(status["ranks"][0]["pid"])
        assert segments and all(not path.exists() for path in segments), "memory without a name"
    if stopped:
        os.kill(status["ranks"][1]["pid"], signal.SIGSTOP)
    mpirun = mpirun_of(process.pid)
    process.kill()
    mpirun.kill()
    wait_until(lambda: not processes_of(run_dir), "workers and coordinator to end", 5)
    assert_nothing_is_left(before)
    if not stopped:
        result = run_ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, "--resume", "auto", "--json")
        assert result.returncode == 0, result.stderr
        summary = json.loads(result.stdout)
        assert summary["resumed_from_step"] >= 7
        assert_same(summary, undisturbed)


def test_a_rank_that_always_dies_at_the_same_step_uses_the_budget_up(
    run_ddp_bp, slow_recipe: Path, tmp_path: Path
) -> None:
    options = ["--set", "model.factory=job_models:dying", "--max-restarts", 1, "--run-dir", tmp_path / "run"]
    options += ["--set", "fault.recovery=restart"]
    result = run_ddp_bp("train", slow_recipe, "-n", 2, "--set", "checkpoint.every_steps=0", *options)
    assert result.returncode == 1
    assert "recovery: restart from the beginning (checkpoint.every_steps is 0), at most 1 in a row" in result.stdout
    assert result.stderr.count("ddp-bp: restart") == 1
    assert "ddp-bp: restart 1 of 1: " in result.stderr
    assert "ddp-bp: training did not finish: " in result.stderr and "was killed by SIGKILL" in result.stderr
    assert "to go on: " in result.stdout
