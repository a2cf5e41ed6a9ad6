"""`ddp-bp chaos` on real jobs: they survive, and the command says so; and it says no where bits differ."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from support import ddp_bp, leftovers, processes_of, wait_until

from ddp_bp.worker.death import POINTS

pytestmark = pytest.mark.mpi
SHORT = ["--set", "train.max_steps=45"]


@pytest.mark.ulfm
def test_a_job_survives_everything_that_a_seed_does_to_it(
    run_ddp_bp, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    before = leftovers()
    options = [
        "--faults",
        "kill,stop,coordinator,launcher",
        "--seed",
        24,
        "--every",
        0.3,
        "--disturbances",
        12,
        "--json",
    ]
    options += ["--set", "fault.silence_seconds=4", "--run-dir", tmp_path / "chaos"]
    result = run_ddp_bp("chaos", slow_recipe, "-n", 3, *options, timeout_seconds=110)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    (job,) = report["jobs"]
    assert report["undisturbed"]["weights_sha256"] == undisturbed["weights_sha256"]
    assert job["survived"] and job["problems"] == []
    assert [done["kind"] for done in job["done"]][:2] == ["coordinator", "launcher"]
    assert job["num_starts"] >= 2
    assert 2 <= len(job["done"]) <= 12
    assert 0 < job["goodput"] < 1.2 and job["mean_seconds_between"] == job["seconds"] / len(job["done"])
    assert processes_of(tmp_path / "chaos") == []
    assert leftovers() == before


@pytest.mark.ulfm
@pytest.mark.timeout(240)
def test_at_every_point_ranks_die_five_times_and_all_of_it_is_survived(run_ddp_bp, tmp_path: Path) -> None:
    options = ["--at", "all", "--times", 5, "--set", "train.max_steps=100", "--run-dir", tmp_path / "chaos"]
    # Five rounds a job: of one rank, of two at once, and of all but one in the end.
    result = run_ddp_bp("chaos", "digits", "-n", 8, *options, "--json", timeout_seconds=200)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    counted = {point["point"]: (point["asked_for"], point["survived"]) for point in report["points"]}
    assert counted == dict.fromkeys(POINTS, (5, 5))
    assert all(job["num_in_place"] >= 1 and job["num_restarts"] == 0 for job in report["jobs"])
    assert "ranks go on from step" in (tmp_path / "chaos" / "optimizer-0.log").read_text()


def test_a_model_that_draws_from_the_system_does_not_survive(run_ddp_bp, slow_recipe: Path, tmp_path: Path) -> None:
    options = ["--set", "model.factory=job_models:drawing_from_the_system", *SHORT]
    options += ["--faults", "coordinator", "--every", 0.3, "--run-dir", tmp_path / "chaos"]
    result = run_ddp_bp("chaos", slow_recipe, "-n", 2, *options)
    assert result.returncode == 1, result.stderr
    assert "0 of 1 survived" in result.stdout
    assert "seed-0: weights_sha256: expected " in result.stdout


def test_nothing_is_left_when_it_is_told_to_end(start_command, slow_recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "chaos"
    process = start_command(ddp_bp("chaos", slow_recipe, "-n", 2, "--run-dir", folder))
    wait_until(lambda: (folder / "undisturbed" / "ledger.jsonl").exists(), "the first run to start", 30)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert processes_of(folder) == []
