"""Ranks of real jobs are killed: those that are left finish the step and go on, and no bit is another."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
from job_histories import assert_is_the_same_run, assert_same
from support import (
    ddp_bp,
    leftovers,
    mpirun,
    processes_of,
    status_of,
    wait_for_step,
    wait_until,
)

pytestmark = [pytest.mark.mpi, pytest.mark.ulfm]


def wait_for_recovery(run_dir: Path, num_lost: int) -> dict:
    def recovered() -> dict | None:
        status = status_of(run_dir)
        return status if status and len(status["lost_ranks"]) == num_lost else None

    return wait_until(recovered, f"going on without {num_lost} ranks")


@pytest.mark.parametrize("killed", [[1], [0], [0, 2], [1, 2, 3]], ids=str)
def test_killed_ranks_are_done_without(
    start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict, killed: list[int]
) -> None:
    run_dir, before = tmp_path / "run", leftovers()
    process = start_command(ddp_bp("train", slow_recipe, "-n", 4, "--run-dir", run_dir))
    first = wait_for_step(run_dir, 10)
    for rank in killed:
        os.kill(first["ranks"][rank]["pid"], signal.SIGKILL)
    status = wait_for_recovery(run_dir, len(killed))
    assert (status["lost_ranks"], status["world_size"], status["restarts"]) == (killed, 4 - len(killed), 0)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "recovery: in place (Open MPI 5" in stdout
    assert f"{4 - len(killed)} of 4 ranks go on from step " in stderr and "Traceback" not in stderr
    summary = assert_is_the_same_run(run_dir, undisturbed)
    assert (summary["world_size"], summary["resumed_from_step"]) == (4 - len(killed), None)
    assert summary["recoveries"] >= 1
    assert leftovers() == before


def test_one_after_another_dies(start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict) -> None:
    run_dir = tmp_path / "run"
    process = start_command(ddp_bp("train", slow_recipe, "-n", 4, "--run-dir", run_dir))
    status = wait_for_step(run_dir, 5)
    survivor = psutil.Process(max(rank["pid"] for rank in status["ranks"]))
    num_descriptors = survivor.num_fds()
    for num_lost in (1, 2, 3):
        os.kill(min(rank["pid"] for rank in status["ranks"]), signal.SIGKILL)
        status = wait_for_recovery(run_dir, num_lost)
    # Each part of the shared memory has one, and what was shared with the dead is given back.
    wait_for_step(run_dir, status["step"] + 2)
    assert survivor.num_fds() <= num_descriptors
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert assert_is_the_same_run(run_dir, undisturbed)["recoveries"] == 3


def test_what_follows_a_step_is_done_again_and_counts_once(run_ddp_bp, slow_recipe: Path, tmp_path: Path) -> None:
    """A plateau that always lowers the rate would do so once more if it heard of an evaluation twice."""
    options = ["--set", "schedule.name=plateau", "--set", "schedule.patience=0", "--set", "schedule.threshold=10.0"]
    options += ["--set", "model.factory=job_models:dying_after_evaluation", "--set", "checkpoint.every_steps=21"]
    results = [
        run_ddp_bp("train", slow_recipe, "-n", size, "--run-dir", tmp_path / str(size), *options, "--json")
        for size in (1, 3)
    ]
    assert [result.returncode for result in results] == [0, 0], results[1].stderr
    assert "2 of 3 ranks go on from step 42" in results[1].stderr
    alone, recovered = (json.loads(result.stdout) for result in results)
    assert recovered["recoveries"] == 1
    assert_same(recovered, alone)
    checkpoints = sorted(path.name for path in (tmp_path / "3" / "checkpoints").iterdir())
    assert checkpoints == ["step-00000021", "step-00000042", "step-00000063"]


def test_a_death_while_the_last_checkpoint_is_sent_costs_another_try(
    start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir = tmp_path / "run"
    options = ["--set", "model.factory=job_models:dying_while_saving"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 3, "--run-dir", run_dir, *options))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "2 of 3 ranks go on from step 63" in stderr
    assert_is_the_same_run(run_dir, undisturbed)


@pytest.mark.parametrize("killed", [0, 1])
def test_where_a_whole_node_dies_all_ranks_start_again(
    start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict, killed: int
) -> None:
    """Without memory in common each rank is a node, and takes its part of the optimizer's state with it."""
    run_dir = tmp_path / "run"
    options = ["--set", "exchange.algorithm=messages"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 3, "--run-dir", run_dir, *options))
    os.kill(wait_for_step(run_dir, 10)["ranks"][killed]["pid"], signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert stderr.count("all ranks of a node have died") == 1 and "ddp-bp: restart 1 of 3" in stderr
    summary = assert_is_the_same_run(run_dir, undisturbed)
    assert (summary["world_size"], summary["recoveries"]) == (3, 1)


@pytest.mark.parametrize("setting", ["fault.recovery=restart", "exchange.compression=bf16"])
def test_where_the_recipe_rules_it_out_nothing_is_done_in_place(
    start_command, slow_recipe: Path, tmp_path: Path, setting: str
) -> None:
    run_dir = tmp_path / "run"
    command = [*mpirun(2), *ddp_bp("worker", slow_recipe, "--run-dir", run_dir, "--set", setting)]
    command[1:1] = ["--with-ft", "ulfm"]
    process = start_command(command)
    os.kill(wait_for_step(run_dir, 10)["ranks"][1]["pid"], signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    # The exit code of mpirun says nothing here.
    assert "lost another rank" in stderr and "go on from step" not in stderr
    assert not (run_dir / "summary.json").exists()
    wait_until(lambda: not processes_of(run_dir), "all to end", 10)


def test_under_a_launcher_of_the_users_own(start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict) -> None:
    run_dir = tmp_path / "run"
    command = [*mpirun(3), *ddp_bp("worker", slow_recipe, "--run-dir", run_dir)]
    command[1:1] = ["--with-ft", "ulfm"]
    process = start_command(command)
    os.kill(wait_for_step(run_dir, 10)["ranks"][2]["pid"], signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert "rank 2 has died; 2 of 3 ranks go on" in stderr
    assert_is_the_same_run(run_dir, undisturbed)


def test_without_rank_0_there_is_no_coordinator_under_a_launcher_of_the_users_own(
    start_command, slow_recipe: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    command = [*mpirun(3), *ddp_bp("worker", slow_recipe, "--run-dir", run_dir)]
    command[1:1] = ["--with-ft", "ulfm"]
    process = start_command(command)
    os.kill(wait_for_step(run_dir, 10)["ranks"][0]["pid"], signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    assert stderr.count("rank 0 has died, and the coordinator with it") == 1
    wait_until(lambda: not processes_of(run_dir), "all to end", 10)
