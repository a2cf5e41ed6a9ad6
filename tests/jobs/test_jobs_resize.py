"""Jobs that go on with another number of ranks, because somebody wants so or some have died: no bit is another."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from pathlib import Path

import pytest
from job_histories import assert_is_the_same_run, assert_same
from support import (
    ddp_bp,
    leftovers,
    mpi_name,
    mpirun,
    status_of,
    summary_of,
    wait_for_step,
    wait_until,
)

pytestmark = pytest.mark.mpi


def test_a_job_grows_and_shrinks_on_demand(
    start_command, run_ddp_bp, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir, before = tmp_path / "run", leftovers()
    # Slow enough for all that is asked meanwhile.
    options = ["--set", "model.options={sleep_seconds=0.06}"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 1, "--run-dir", run_dir, *options))
    wait_for_step(run_dir, 3)
    refused = run_ddp_bp("scale", run_dir, "-n", 4)
    assert refused.returncode == 2 and "expected at most 3, the number of shards" in refused.stderr
    assert run_ddp_bp("scale", run_dir, "-n", 3, "--timeout", 0).returncode == 0
    wait_until(lambda: not (run_dir / "coordinator.json").exists(), "the end of the first start")
    result = run_ddp_bp("scale", run_dir, "-n", 2)
    assert result.returncode == 0, result.stderr
    assert "3 -> 2 ranks, training from step " in result.stdout, "once there were 3"
    status = status_of(run_dir)
    assert (status["world_size"], status["resizes"], status["restarts"]) == (2, 2, 0)
    assert "trains on 2 ranks already" in run_ddp_bp("scale", run_dir, "-n", 2).stdout
    url = json.loads((run_dir / "coordinator.json").read_bytes())["url"]
    with urllib.request.urlopen(f"{url}metrics") as reply:
        text = reply.read().decode()
        assert "ddp_bp_resizes_total 2.0" in text and "ddp_bp_restarts_total 0.0" in text
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "3 ranks asked for; saving a checkpoint" in stdout and "restart" not in stderr
    summary = assert_is_the_same_run(run_dir, undisturbed)
    assert (summary["world_size"], summary["recoveries"]) == (2, 0)
    assert mpi_name() == "MPICH" or leftovers() == before
    ended = run_ddp_bp("scale", run_dir, "-n", 2)
    assert ended.returncode == 2 and "no job is running" in ended.stderr


def test_a_job_whose_disk_is_full_by_the_time_it_stops_for_other_ranks_goes_on(
    start_command, run_ddp_bp, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir = tmp_path / "run"
    options = ["--set", "model.factory=job_models:full_disk_at_the_first_end"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, *options))
    wait_for_step(run_dir, 3)
    assert run_ddp_bp("scale", run_dir, "-n", 3, "--timeout", 0).returncode == 0
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "the checkpoint was not saved: no space left" in stderr
    assert "restart 1 of 3: the ranks failed when they were to stop (3 ranks asked for); going on from step " in stderr
    assert assert_is_the_same_run(run_dir, undisturbed)["world_size"] == 3


def test_a_stop_while_ranks_are_started_anew_takes_effect(
    start_command, run_ddp_bp, slow_recipe: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = start_command(ddp_bp("train", slow_recipe, "-n", 1, "--run-dir", run_dir))
    wait_for_step(run_dir, 3)
    assert run_ddp_bp("scale", run_dir, "-n", 2, "--timeout", 0).returncode == 0
    wait_until(lambda: not (run_dir / "coordinator.json").exists(), "the end of the first start")
    stopped = run_ddp_bp("stop", run_dir)
    assert stopped.returncode == 0, stopped.stderr
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "stopped after step " in stdout and " -n 2 " in stdout.partition("to go on: ")[2]
    assert summary_of(run_dir)["steps"] < 63


def test_a_number_of_ranks_that_cannot_be_started_gives_way_to_the_one_before(
    start_command, run_ddp_bp, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir = tmp_path / "run"
    options = ["--set", "model.factory=job_models:for_few_ranks"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, *options))
    wait_for_step(run_dir, 3)
    refused = run_ddp_bp("scale", run_dir, "-n", 3)
    assert refused.returncode == 1 and "goes on with 2 ranks; `train` says why not with 3" in refused.stderr
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "3 ranks are too many here" in stderr
    told = "ddp-bp: 3 ranks could not be started: see above; going on with 2 ranks, as before"
    assert stderr.splitlines().count(told) == 1
    summary = summary_of(run_dir)
    assert (summary["world_size"], summary["recoveries"]) == (2, 0)
    assert_same(summary, undisturbed)


def test_a_job_that_cannot_save_a_checkpoint_is_not_stopped_for_it(
    start_command, run_ddp_bp, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir = tmp_path / "run"
    options = ["--set", "checkpoint.every_steps=0"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 1, "--run-dir", run_dir, *options))
    wait_for_step(run_dir, 3)
    folder, elsewhere = run_dir / "checkpoints", tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.write_text("in the way of checkpoints\n")
    assert run_ddp_bp("scale", run_dir, "-n", 2, "--timeout", 0).returncode == 0
    wait_until(lambda: (status_of(run_dir) or {})["checkpoints"]["failures"] > 0, "a checkpoint that fails")
    folder.unlink()
    elsewhere.rename(folder)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "so the job does not stop, and goes on as it is" in stderr
    assert assert_is_the_same_run(run_dir, undisturbed)["world_size"] == 1


@pytest.mark.ulfm
def test_others_take_the_place_of_dead_ranks(
    start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir = tmp_path / "run"
    options = ["--set", "fault.respawn=true", "--set", "fault.respawn_limit=1"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 3, "--run-dir", run_dir, *options))
    for rank, resizes in ((1, 0), (0, 1)):

        def is_whole(resizes: int = resizes) -> dict | None:
            status = status_of(run_dir)
            if status is None or status["state"] != "training" or status["resizes"] != resizes:
                return None
            return status if all(row["last_step_age_seconds"] is not None for row in status["ranks"]) else None

        os.kill(wait_until(is_whole, "three ranks that train")["ranks"][rank]["pid"], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert stdout.count("rank 1 has died; starting others in the place of the dead; saving a checkpoint") == 1
    assert "going on from step " in stdout and "starting others" not in stdout.split("going on")[1]
    summary = assert_is_the_same_run(run_dir, undisturbed)
    # The budget was used up by the first.
    assert (summary["world_size"], summary["recoveries"]) == (2, 2)


@pytest.mark.ulfm
@pytest.mark.parametrize("starts", ["train", "own mpirun"])
def test_with_too_few_ranks_it_stops_with_a_checkpoint(
    start_command, run_ddp_bp, slow_recipe: Path, tmp_path: Path, undisturbed: dict, starts: str
) -> None:
    run_dir = tmp_path / "run"
    options = [slow_recipe, "--run-dir", run_dir, "--set", "fault.min_workers=3"]
    if starts == "train":
        process = start_command(ddp_bp("train", "-n", 3, *options))
    else:
        command = [*mpirun(3), *ddp_bp("worker", *options)]
        process = start_command([command[0], "--with-ft", "ulfm", *command[1:]])
    status = wait_for_step(run_dir, 3)
    if starts != "train":
        result = run_ddp_bp("scale", run_dir, "-n", 2)
        assert result.returncode == 2 and "`ddp-bp train` has not started this job" in result.stderr
    os.kill(status["ranks"][2]["pid"], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=60)
    assert "fewer " in stdout + stderr and "fault.min_workers = 3" in stdout + stderr
    if starts == "train":
        assert process.returncode == 1
        assert "stopped after step " in stdout
    steps = summary_of(run_dir)["steps"]
    assert steps < 63
    again = run_ddp_bp("train", *options, "-n", 2)
    assert again.returncode == 2 and "fault.min_workers: expected at most the number of ranks, 2, got 3" in again.stderr
    assert run_ddp_bp("train", *options, "-n", 3).returncode == 0
    assert assert_is_the_same_run(run_dir, undisturbed)["resumed_from_step"] == steps
