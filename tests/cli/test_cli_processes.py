"""Processes that end when they are told to or not."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from ddp_bp.cli import processes
from ddp_bp.cli.processes import CoordinatorProcess, end_process_group, start_coordinator, start_mpirun
from ddp_bp.errors import InputError, LaunchError
from ddp_bp.recipes import load_recipe
from ddp_bp.worker.rundir import RunDirectory


def shell(script: str) -> subprocess.Popen[bytes]:
    """A started script that has said that it is ready."""
    process = start_mpirun(["/bin/sh", "-c", script], Path("/nowhere"))
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()


@pytest.mark.parametrize(
    ("script", "number"),
    [
        ("echo ready; sleep 60 & wait", signal.SIGTERM),
        ("trap '' TERM; echo ready; sleep 60 & wait; sleep 60", signal.SIGKILL),
    ],
)
def test_a_group_is_asked_to_end_and_then_made_to(script: str, number: signal.Signals) -> None:
    process = shell(script)
    end_process_group(process, grace_seconds=0.3)
    assert process.returncode == -number
    # The pipe is at its end only when the children that inherited it have gone too.
    assert process.stdout is not None
    assert process.stdout.read() == b""
    end_process_group(process)
    close(process)


def test_mpirun_gets_blas_with_one_thread_the_jobs_folder_and_no_terminal(tmp_path: Path) -> None:
    script = 'read line && echo "a line"; echo "$OPENBLAS_NUM_THREADS $TMPDIR"; echo no >&2'
    process = start_mpirun(["/bin/sh", "-c", script], tmp_path)
    stdout, stderr = process.communicate(timeout=10)
    assert (stdout.decode(), stderr) == (f"1 {tmp_path}\n", b"no\n")


def test_a_coordinator_that_does_not_end_is_killed_and_its_lifeline_let_go_once() -> None:
    reading, writing = os.pipe()
    process = subprocess.Popen(["/bin/sleep", "60"])
    coordinator = CoordinatorProcess(process, writing)
    assert coordinator.wait(0.05) == -signal.SIGKILL
    assert os.read(reading, 1) == b"", "the other end of the pipe is closed"
    os.close(reading)
    other = os.open(os.devnull, os.O_RDONLY)  # it may have the same number
    coordinator.release()
    os.fstat(other)
    os.close(other)


def test_a_coordinator_listens_until_its_lifeline_is_let_go(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run").create(load_recipe("digits")[0], {})
    coordinator = start_coordinator("digits", (), 1, tmp_path / "run", 5)
    assert (tmp_path / "run" / "coordinator.json").exists()
    coordinator.release()
    coordinator.wait(20)
    assert not (tmp_path / "run" / "coordinator.json").exists()


def test_a_coordinator_that_cannot_start_says_why_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="the coordinator did not start; see above"):
        start_coordinator("digits", ("coordinator.host=nowhere.invalid",), 1, tmp_path, 5)
    assert "nowhere.invalid" in capfd.readouterr().err


def test_a_coordinator_that_ends_before_it_listens_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.sys, "executable", "/bin/false")
    with pytest.raises(LaunchError, match="ended with exit code 1 before it listened"):
        start_coordinator("digits", (), 1, tmp_path, 5)
