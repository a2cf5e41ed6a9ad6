"""Ranks that wait take the place of ranks of real jobs that are killed: in the very step, and no bit is another."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from job_histories import assert_is_the_same_run
from support import ddp_bp, leftovers, mpirun, processes_of, run_to_end, status_of, wait_for_step, wait_until

pytestmark = [pytest.mark.mpi, pytest.mark.ulfm]


def kill(status: dict[str, Any], *ranks: int, by: signal.Signals = signal.SIGKILL) -> None:
    for row in status["ranks"]:
        if row["rank"] in ranks:
            os.kill(row["pid"], by)


def wait_for(run_dir: Path, **expected: Any) -> dict[str, Any]:
    def is_so() -> dict[str, Any] | None:
        status = status_of(run_dir)
        return status if status and all(status[key] == value for key, value in expected.items()) else None

    return wait_until(is_so, f"a status with {expected}")


def test_spares_step_in_one_after_another_until_none_of_the_first_team_is_left(
    start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir, before = tmp_path / "run", leftovers()
    # Slower steps, so that none of what is waited for can be over before it is seen.
    options = ["--set", "fault.spares=3", "--set", "fault.respawn=true", "--set", "model.options.sleep_seconds=0.04"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, *options))
    first = wait_for_step(run_dir, 5)
    assert (first["world_size"], first["spare_ranks"], first["shards"]) == (2, [2, 3, 4], 3)
    kill(first, 1)
    wait_for(run_dir, lost_ranks=[1], world_size=2, spare_ranks=[3, 4], ready=True)
    kill(first, 0)
    wait_for(run_dir, lost_ranks=[0, 1], world_size=2, spare_ranks=[4], ready=True)
    kill(first, 2)
    status = wait_for(run_dir, lost_ranks=[0, 1, 2], world_size=2, spare_ranks=[], ready=True)
    assert status["step"] < 60, "all before the end"
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "the ranks that are left finish the step, with 3 spares to step in" in stdout
    assert "rank 1 has died; 2 of 5 ranks go on from step " in stderr and "; rank 2 has stepped in" in stderr
    assert "Traceback" not in stderr and "starting others" not in stderr
    summary = assert_is_the_same_run(run_dir, undisturbed)
    assert (summary["world_size"], summary["resumed_from_step"], summary["recoveries"]) == (2, None, 3)
    assert leftovers() == before


def test_a_dead_spare_is_passed_over_and_the_others_find_the_coordinator_again(
    start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir = tmp_path / "run"
    process = start_command(
        ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, "--set", "fault.spares=2", "--set", "fault.audit=1")
    )
    first = wait_for_step(run_dir, 3)
    kill(first, 2)
    [coordinator] = [one for one in processes_of(run_dir) if "coordinator" in one.cmdline()]
    coordinator.kill()
    wait_until(lambda: "address" in (status_of(run_dir) or {}), "the coordinator to be back")
    wait_for(run_dir, world_size=2, ready=True)
    kill(first, 0)
    wait_for(run_dir, lost_ranks=[0, 2], world_size=2, spare_ranks=[], ready=True)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "; rank 3 has stepped in" in stderr
    assert assert_is_the_same_run(run_dir, undisturbed)["world_size"] == 2


def test_a_stopped_spare_holds_up_the_others_until_its_own_deadline(
    start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir = tmp_path / "run"
    options = ["--set", "fault.spares=1", "--set", "fault.silence_seconds=3", "--set", "checkpoint.every_steps=1"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 3, "--run-dir", run_dir, *options))
    first = wait_for_step(run_dir, 10)
    kill(first, 3, by=signal.SIGSTOP)
    kill(first, 1)
    began = time.monotonic()
    wait_for(run_dir, lost_ranks=[1, 3], world_size=2, spare_ranks=[], ready=True)
    # Nobody would wait for over 20 s for a job to go on without a rank that was evicted.
    assert time.monotonic() - began < 3 + 10
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "rank 1, 3 has died; 2 of 4 ranks go on from step " in stderr and "restart" not in stderr
    assert assert_is_the_same_run(run_dir, undisturbed)["world_size"] == 2


@pytest.mark.hosts
def test_a_stopped_spare_that_nobody_can_kill_is_named_at_its_deadline_if_others_need_it(
    start_command, slow_recipe: Path, tmp_path: Path
) -> None:
    """It has process numbers of its own, as in a container: there its number is another process's here."""
    alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("process namespaces cannot be made here")
    run_dir = tmp_path / "run"
    options = ["--set", "fault.spares=1", "--set", "fault.silence_seconds=3", "--set", "train.epochs=1000"]
    worker = ddp_bp("worker", slow_recipe, "--run-dir", run_dir, *options)
    command = [*mpirun(2), *worker, ":", "-n", "1", *alone, *worker]
    # Between them Open MPI would copy memory by such numbers.
    command[1:1] = ["--with-ft", "ulfm", "--mca", "smsc", "^cma"]
    process = start_command(command)
    first = wait_for_step(run_dir, 10)
    assert [row["pid"] for row in first["ranks"]][2] == 1
    [spare] = [one for one in processes_of(run_dir) if one.parent().name() == "unshare"]
    spare.suspend()
    kill(first, 1)
    rank_0 = psutil.Process(first["ranks"][0]["pid"])
    began = time.monotonic()
    wait_until(lambda: not rank_0.is_running() or rank_0.status() == psutil.STATUS_ZOMBIE, "the end of rank 0", 30)
    assert time.monotonic() - began < 3 + 10
    assert spare.status() == psutil.STATUS_STOPPED
    spare.kill()
    _, stderr = process.communicate(timeout=60)
    assert "rank 0 ends: the job cannot go on without rank 1, which has died: MPI waits for rank 2, a spare" in stderr


def test_all_of_the_team_but_one_die_at_once_and_so_does_the_next_one(
    start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    """Under a launcher of the user's own, whose last ranks wait."""
    run_dir = tmp_path / "run"
    command = [*mpirun(5), *ddp_bp("worker", slow_recipe, "--run-dir", run_dir, "--set", "fault.spares=2")]
    command[1:1] = ["--with-ft", "ulfm"]
    process = start_command(command)
    kill(wait_for_step(run_dir, 10), 1, 2)
    kill(wait_for(run_dir, lost_ranks=[1, 2], world_size=3, ready=True), 3, 4)
    stdout, stderr = process.communicate(timeout=60)
    assert "5 ranks, 2 of them as spares, Open MPI" in stdout
    assert "rank 1, 2 has died; 3 of 5 ranks go on" in stderr and "rank 3, 4 has died; 1 of 5 ranks" in stderr
    assert assert_is_the_same_run(run_dir, undisturbed)["world_size"] == 1


def test_a_coordinator_that_stands_alone_knows_of_them_by_the_recipe(
    start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    """So rank 0 may die as well under a launcher of the user's own."""
    run_dir, options = tmp_path / "run", ["--set", "fault.spares=1"]
    coordinator = start_command(ddp_bp("coordinator", slow_recipe, "-n", 2, "--run-dir", run_dir, *options))
    address = wait_until(lambda: (status_of(run_dir) or {}).get("address"), "the coordinator")
    command = [*mpirun(3), *ddp_bp("worker", slow_recipe, "--run-dir", run_dir, "--coordinator", address, *options)]
    command[1:1] = ["--with-ft", "ulfm"]
    process = start_command(command)
    kill(wait_for_step(run_dir, 10), 0)
    wait_for(run_dir, lost_ranks=[0], world_size=2, spare_ranks=[], ready=True)
    process.communicate(timeout=60)
    assert coordinator.wait(30) == 0
    assert assert_is_the_same_run(run_dir, undisturbed)["recoveries"] == 1


def test_one_rank_alone_has_none(run_ddp_bp, slow_recipe: Path, tmp_path: Path) -> None:
    options = ["--set", "fault.spares=1", "--set", "train.max_steps=2"]
    result = run_ddp_bp("train", slow_recipe, "-n", 1, "--run-dir", tmp_path / "run", *options)
    assert result.returncode == 0, result.stderr
    assert "step in" not in result.stdout and "in place (" not in result.stdout
    assert "at most 3 in a row without progress (one rank, so not in place)" in result.stdout
    assert "fault.spares: none is started, since a spare goes on with what another rank still has" in result.stderr


def test_where_nobody_is_left_who_has_trained_all_start_again(
    start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir = tmp_path / "run"
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, "--set", "fault.spares=1"))
    kill(wait_for_step(run_dir, 20), 0, 1)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert stderr.count("all ranks that trained have died") == 1 and "ddp-bp: restart 1 of 3" in stderr
    assert assert_is_the_same_run(run_dir, undisturbed)["resumed_from_step"] >= 14


def test_where_a_node_is_lost_spares_keep_nobody_from_starting_again(
    start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    """Every rank is a node of its own, as on hosts of one rank each."""
    run_dir = tmp_path / "run"
    options = ["--set", "fault.spares=1", "--set", "exchange.algorithm=messages"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, *options))
    kill(wait_for_step(run_dir, 20), 1)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "all ranks of a node have died" in stderr and "ddp-bp: restart 1 of 3" in stderr
    assert assert_is_the_same_run(run_dir, undisturbed)["resumed_from_step"] >= 14


def test_a_spare_joins_where_rates_fall_and_checkpoints_are_due_all_the_time(
    start_command, slow_recipe: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    options = ["--set", "fault.spares=2", "--set", "schedule.name=cosine", "--set", "checkpoint.every_steps=1"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, *options))
    first = wait_for_step(run_dir, 5)
    for rank in (1, 2):
        kill(first, rank)
        wait_for(run_dir, lost_ranks=list(range(1, rank + 1)), world_size=2, ready=True)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr


def test_a_spare_that_has_died_keeps_nobody_from_stopping_or_others_from_the_end(
    start_command, slow_recipe: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    options = ["--set", "fault.spares=2"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, *options))
    kill(wait_for_step(run_dir, 3), 2)
    wait_until(lambda: [row["rank"] for row in (status_of(run_dir) or {"ranks": []})["ranks"]] == [0, 1, 3], "its end")
    process.send_signal(signal.SIGUSR1)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert "stopped after step" in stdout and processes_of(run_dir) == []


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--set", "model.factory=job_models:raising"], 1, "rank 1 failed at step"),
        (["--set", "train.max_steps=5"], 0, ""),
    ],
    ids=["an error", "the end"],
)
def test_spares_end_with_the_others(
    run_ddp_bp, slow_recipe: Path, tmp_path: Path, options: list[str], code: int, said: str
) -> None:
    run_dir = tmp_path / "run"
    result = run_ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, "--set", "fault.spares=1", *options)
    assert result.returncode == code, result.stderr
    assert said in result.stderr and result.stderr.count("Traceback") == (1 if code else 0)
    assert processes_of(run_dir) == []


@pytest.mark.parametrize(("by", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 75)])
def test_a_signal_to_a_spare_alone_ends_the_job_with_a_checkpoint_as_one_to_any_rank_does(
    start_command, slow_recipe: Path, tmp_path: Path, by: signal.Signals, code: int
) -> None:
    run_dir = tmp_path / "run"
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, "--set", "fault.spares=1"))
    kill(wait_for_step(run_dir, 3), 2, by=by)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "stopped after step" in stdout and processes_of(run_dir) == []


@pytest.mark.parametrize("num_spares", [1, 2])
def test_spares_that_could_not_be_are_refused(slow_recipe: Path, tmp_path: Path, num_spares: int) -> None:
    options = ["--run-dir", tmp_path / "run", "--set", f"fault.spares={num_spares}"]
    command = [*mpirun(2), *ddp_bp("worker", slow_recipe, *options)]
    command[1:1] = ["--with-ft", "ulfm"]
    result = run_to_end(command, 60)
    assert result.returncode != 0
    said = f"fault.spares: {num_spares} of the ranks that are started wait; expected at least two more, since a spare "
    assert result.stderr.count(said) == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_rank_that_dies_before_it_trains_has_all_started_again(
    run_ddp_bp, slow_recipe: Path, tmp_path: Path, undisturbed: dict, is_prepared: bool
) -> None:
    """Some ranks abort then, others end, and neither mpirun nor MPI's end can be relied on."""
    run_dir, before = tmp_path / "run", leftovers()
    options = ["--set", "fault.spares=4", "--set", "model.factory=job_models:dying_early"]
    options += ["--set", f"model.options.is_prepared={str(is_prepared).lower()}"]
    result = run_ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, *options, timeout_seconds=60)
    assert result.returncode == 0, result.stderr
    assert "restart 1 of 3" in result.stderr and "Traceback" not in result.stderr
    assert_is_the_same_run(run_dir, undisturbed)
    assert leftovers() == before
