"""A job whose metrics somebody reads waits at its end until they have been read once more; another one does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ddp_bp, mpirun, processes_of, summary_of, wait_for_step, wait_until

from ddp_bp.coordinator.address import read_address
from ddp_bp.worker.signals import STOP_EXIT_CODES

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(120)]

WAITS = "s until Prometheus has seen the end; Ctrl-C ends at once"
NOTICED_SECONDS = 5.0
"""Far less than a Prometheus that comes every 15 s would be waited for."""


def read_metrics(run_dir: Path) -> str:
    """What a Prometheus gets that comes every 15 s."""
    url = json.loads((run_dir / "coordinator.json").read_bytes())["url"]
    request = urllib.request.Request(f"{url}metrics", headers={"X-Prometheus-Scrape-Timeout-Seconds": "10"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        return reply.read().decode()


def said_until(process: subprocess.Popen[str], text: str) -> str:
    """What a process has said by the time that it says this."""
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"it ended without {text!r}: {said}{process.stderr.read()}")


def test_nobody_is_waited_for_without_a_reader(run_ddp_bp, tmp_path: Path) -> None:
    result = run_ddp_bp("train", "digits", "-n", 1, "--run-dir", tmp_path / "run", "--set", "train.epochs=1")
    assert result.returncode == 0, result.stderr
    assert WAITS not in result.stdout


def test_a_reader_sees_the_end_and_nobody_waits_between_two_starts(
    start_command, run_ddp_bp, slow_recipe: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    options = ["--set", "model.options={sleep_seconds=0.04}"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 1, "--run-dir", run_dir, *options))
    wait_for_step(run_dir, 3)
    read_metrics(run_dir)
    scaled = run_ddp_bp("scale", run_dir, "-n", 2)
    assert scaled.returncode == 0, scaled.stderr
    assert WAITS not in said_until(process, "going on from step")
    # Its second coordinator has not been read yet.
    wait_for_step(run_dir, 20)
    read_metrics(run_dir)
    said_until(process, WAITS)
    text = read_metrics(run_dir)
    steps = summary_of(run_dir)["steps"]
    assert 'ddp_bp_state{state="finished"} 1.0' in text and f"ddp_bp_step {steps:.1f}" in text
    process.communicate(timeout=NOTICED_SECONDS)
    assert process.returncode == 0 and processes_of(run_dir) == []


def _signal(process: subprocess.Popen[str], _: Path) -> None:
    process.send_signal(signal.SIGINT)


def _stop(_: subprocess.Popen[str], run_dir: Path) -> None:
    subprocess.run(ddp_bp("stop", run_dir), check=True, timeout=60)


@pytest.mark.parametrize("stop", [_signal, _stop], ids=["Ctrl-C", "ddp-bp stop"])
def test_a_job_that_was_stopped_waits_and_a_second_stop_ends_that(
    stop: Callable[[subprocess.Popen[str], Path], None], start_command, slow_recipe: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir))
    wait_for_step(run_dir, 3)
    read_metrics(run_dir)
    stop(process, run_dir)
    said_until(process, WAITS)
    stop(process, run_dir)
    stdout, stderr = process.communicate(timeout=NOTICED_SECONDS)
    assert process.returncode == 130, stderr
    assert "stopped after step" in stdout and processes_of(run_dir) == []


def test_who_ends_a_job_by_force_in_a_while_is_not_kept_waiting(
    start_command, slow_recipe: Path, tmp_path: Path
) -> None:
    run_dir, grace_seconds = tmp_path / "run", 6.0
    options = ["--set", f"fault.grace_seconds={grace_seconds}"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, *options))
    wait_for_step(run_dir, 3)
    read_metrics(run_dir)
    process.send_signal(signal.SIGTERM)
    said_until(process, WAITS)
    _, stderr = process.communicate(timeout=grace_seconds + NOTICED_SECONDS)
    assert process.returncode == 143, stderr


@pytest.mark.parametrize("by", [None, "SIGINT", "SIGTERM", "SIGUSR1"])
def test_what_the_ranks_said_counts_when_the_coordinator_is_killed_meanwhile(
    start_command, slow_recipe: Path, tmp_path: Path, by: str | None
) -> None:
    run_dir = tmp_path / "run"
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir))
    wait_for_step(run_dir, 3)
    read_metrics(run_dir)
    if by is not None:
        process.send_signal(signal.Signals[by])
    said_until(process, WAITS)
    os.kill(read_address(run_dir).pid, signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=NOTICED_SECONDS)
    assert process.returncode == (0 if by is None else STOP_EXIT_CODES[by]), stderr
    assert ("stopped after step" in stdout) == (by is not None)
    assert "did not finish" not in stderr and "restart" not in stderr


def test_a_launcher_that_is_killed_meanwhile_leaves_nothing(start_command, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start_command(ddp_bp("train", "digits", "-n", 1, "--run-dir", run_dir))
    wait_for_step(run_dir, 3)
    read_metrics(run_dir)
    said_until(process, WAITS)
    process.kill()
    wait_until(lambda: processes_of(run_dir) == [], "the end of the coordinator", NOTICED_SECONDS)


@pytest.mark.parametrize("then", ["read", "interrupted", "killed"])
def test_rank_0_waits_for_a_coordinator_that_it_has_started(then: str, start_command, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    launcher = mpirun(2) if then == "read" else []
    process = start_command([*launcher, *ddp_bp("worker", "digits", "--run-dir", run_dir)])
    wait_for_step(run_dir, 3)
    read_metrics(run_dir)
    said_until(process, WAITS)
    if then == "read":
        assert 'ddp_bp_state{state="finished"} 1.0' in read_metrics(run_dir)
    elif then == "interrupted":
        process.send_signal(signal.SIGINT)
    else:
        os.kill(read_address(run_dir).pid, signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=NOTICED_SECONDS)
    assert process.returncode == 0, stderr
    assert "weights" in stdout and "Traceback" not in stderr and "could not write" not in stderr
