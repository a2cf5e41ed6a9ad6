"""A long job is steady: over 20,000 steps no process of it grows, nor with every death, and steps meet no new pages."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from support import ddp_bp, processes_of, status_of, wait_for_step, wait_until

from ddp_bp.bench.machine import proportional_set_bytes

pytestmark = pytest.mark.mpi

NUM_STEPS = 20_000
MAX_GROWTH_BYTES = 4 * 2**20
MAX_FAULTS_PER_STEP = 10
MINOR_FAULTS_FIELD = 9
NUM_SPARES = 4
MAX_HEAP_GROWTH_BYTES = 2**20


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


def test_what_a_rank_goes_on_from_does_not_stay_with_it(run_ddp_bp, slow_recipe: Path, tmp_path: Path) -> None:
    options = ["-n", 2, "--run-dir", tmp_path / "run", "--set", "model.factory=job_models:keeping_no_checkpoint"]
    first = run_ddp_bp("train", slow_recipe, *options, "--set", "train.max_steps=10")
    assert first.returncode == 0, first.stderr
    more = run_ddp_bp("train", slow_recipe, *options, "--set", "train.max_steps=20", "--resume", "auto", "--json")
    assert more.returncode == 0, more.stderr
    summary = json.loads(more.stdout)
    assert (summary["resumed_from_step"], summary["steps"]) == (10, 20)


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


def resident_heap_bytes(pid: int) -> int:
    """What a process has of its heap, which is apart from memory that it shares, and from that of its interpreter."""
    lines = iter(Path("/proc", str(pid), "smaps").read_text().splitlines())
    next(line for line in lines if line.endswith("[heap]"))
    return 1024 * int(next(line for line in lines if line.startswith("Rss:")).split()[1])


@pytest.mark.ulfm
def test_a_rank_does_not_grow_while_others_die_and_spares_step_in(start_command, tmp_path: Path) -> None:
    """Of what a team holds nothing may stand where a later step would have put its activations."""
    run_dir = tmp_path / "run"
    settings = [f"fault.spares={NUM_SPARES}", "fault.respawn=false", "train.shards=2", "train.batch_size=4"]
    settings += ["train.epochs=1000", "train.eval_every_epochs=0", "checkpoint.every_steps=0"]
    options = [part for setting in settings for part in ("--set", setting)]
    start_command(ddp_bp("train", "shakespeare-gpt", "-n", 2, "--run-dir", run_dir, *options))
    status = wait_for_step(run_dir, 10)
    pids = {row["rank"]: row["pid"] for row in status["ranks"]}
    before, num_descriptors = resident_heap_bytes(pids[0]), psutil.Process(pids[0]).num_fds()
    for num_lost in range(1, NUM_SPARES + 1):
        os.kill(pids[num_lost], signal.SIGKILL)
        status = wait_until(lambda lost=num_lost: replaced(run_dir, lost), f"the recovery of {num_lost} deaths")
        wait_for_step(run_dir, status["step"] + 3)
    assert resident_heap_bytes(pids[0]) - before <= MAX_HEAP_GROWTH_BYTES
    assert psutil.Process(pids[0]).num_fds() <= num_descriptors


def replaced(run_dir: Path, num_lost: int) -> dict[str, Any] | None:
    """The status of the job once spares have stepped in for so many ranks."""
    status = status_of(run_dir)
    return status if status and len(status["lost_ranks"]) == num_lost and status["ready"] else None
