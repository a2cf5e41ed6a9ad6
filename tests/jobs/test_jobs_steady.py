"""A long job is steady: over 20,000 steps no process of it grows, and steps meet no new pages."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from support import ddp_bp, processes_of, wait_for_step

from ddp_bp.bench.machine import proportional_set_bytes

pytestmark = pytest.mark.mpi

NUM_STEPS = 20_000
MAX_GROWTH_BYTES = 4 * 2**20
MAX_FAULTS_PER_STEP = 10
MINOR_FAULTS_FIELD = 9


class Reading(NamedTuple):
    num_bytes: int
    minor_faults: int


def read(process: psutil.Process) -> Reading:
    folder = Path("/proc", str(process.pid))
    # The second field, a name in parentheses, may hold blanks; what follows is counted from the third on.
    fields = folder.joinpath("stat").read_text().rpartition(")")[2].split()
    return Reading(proportional_set_bytes(folder / "smaps_rollup"), int(fields[MINOR_FAULTS_FIELD + 1 - 3]))


def is_rank(process: psutil.Process) -> bool:
    command = process.cmdline()
    return Path(command[0]).name.startswith("python") and "worker" in command


def test_large_arrays_that_come_and_go_in_every_step_meet_no_new_pages(
    start_command, slow_recipe: Path, tmp_path: Path
) -> None:
    """By default the C library gives such arrays back, which costs 200 page faults a step where pages are huge ones."""
    run_dir = tmp_path / "run"
    options = ["--set", "model.factory=job_models:hungry", "--set", "checkpoint.every_steps=0"]
    options += ["--set", "train.epochs=1000", "--set", "train.eval_every_epochs=0", "--set", "train.shards=2"]
    start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, *options))
    first_step = wait_for_step(run_dir, 20)["step"]
    ranks = [found for found in processes_of(run_dir) if is_rank(found)]
    before = [read(found).minor_faults for found in ranks]
    assert len(ranks) == 2
    last_step = wait_for_step(run_dir, first_step + 50)["step"]
    for found, then in zip(ranks, before, strict=True):
        assert (read(found).minor_faults - then) / (last_step - first_step) <= MAX_FAULTS_PER_STEP


@pytest.mark.timeout(300)
def test_nothing_grows_over_20000_steps_and_steps_meet_no_new_pages(start_command, tmp_path: Path) -> None:
    """Ranks and coordinator alike; with an evaluation every 23 steps, and dropout."""
    run_dir = tmp_path / "run"
    settings = ["model.options={hidden=[8],dropout=0.1}", "train.shards=2", "train.epochs=100000"]
    # Enough steps that none of the processes has ended when it is looked at for the second time.
    settings.append(f"train.max_steps={3 * NUM_STEPS}")
    options = [part for setting in settings for part in ("--set", setting)]
    process = start_command(ddp_bp("train", "digits", "-n", 2, "--run-dir", run_dir, *options))
    first_step = wait_for_step(run_dir, NUM_STEPS // 10)["step"]
    roles = ("worker", "coordinator")
    watched = [
        found
        for found in processes_of(run_dir)
        if found.pid != process.pid and any(f"-m ddp_bp {role} digits" in " ".join(found.cmdline()) for role in roles)
    ]
    ranks = [found for found in watched if is_rank(found)]
    before = {found.pid: read(found) for found in watched}
    assert len(ranks) >= 2 and len(watched) > len(ranks)
    last_step = wait_for_step(run_dir, first_step + NUM_STEPS)["step"]
    for found in watched:
        then, now = before[found.pid], read(found)
        line = " ".join(found.cmdline())
        assert now.num_bytes - then.num_bytes <= MAX_GROWTH_BYTES, f"bytes then {then}, now {now}: {line}"
        assert (now.minor_faults - then.minor_faults) / (last_step - first_step) <= MAX_FAULTS_PER_STEP, line
