"""`train --coordinator-shell`: the coordinator is started by a command, as ssh would start it on another host."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from support import ddp_bp, processes_of, wait_for_step, wait_until

pytestmark = pytest.mark.mpi


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    """What takes a shell command as its last argument, keeps it, and passes on input and exit code: as ssh does."""
    script = tmp_path / "reach"
    script.write_text(f'#!/bin/sh\necho "$2" >>{tmp_path}/said\n[ "$1" = there ] && sh -c "$2"\n')
    script.chmod(0o755)
    return script


def test_the_coordinator_is_started_by_the_command_and_ends_with_the_job(run_ddp_bp, shell: Path, tmp_path) -> None:
    run = tmp_path / "run"
    settings = ["-n", 2, "--set", "train.epochs=2", "--run-dir", run, "--json"]
    result = run_ddp_bp("train", "digits", *settings, "--coordinator-shell", f"{shell} there")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["epochs"] == 2
    said = (tmp_path / "said").read_text().splitlines()
    assert len(said) == 1
    assert " -m ddp_bp coordinator digits " in said[0]
    assert not processes_of(run)


def test_it_is_started_again_when_it_is_killed_and_ends_with_a_train_that_is_killed(
    start_command, shell: Path, tmp_path
) -> None:
    run = tmp_path / "run"
    settings = ["-n", 1, "--set", "train.epochs=100000", "--run-dir", run, "--coordinator-shell", f"{shell} there"]
    train = start_command(ddp_bp("train", "digits", *settings))
    wait_for_step(run, 5)

    def coordinators() -> list:
        command = ["-m", "ddp_bp", "coordinator"]
        return [process for process in processes_of(run) if process.info["cmdline"][1:4] == command]

    (first,) = coordinators()
    first.kill()
    wait_until(lambda: [process for process in coordinators() if process.pid != first.pid], "another coordinator")
    step = wait_for_step(run, 0)["step"]
    wait_for_step(run, step + 20)
    train.send_signal(signal.SIGKILL)
    wait_until(lambda: not processes_of(run), "the end of all processes", 20)


def test_a_command_that_leads_nowhere_is_an_error(run_ddp_bp, shell: Path, tmp_path) -> None:
    options = ["--run-dir", tmp_path / "run", "--coordinator-shell", f"{shell} elsewhere"]
    result = run_ddp_bp("train", "digits", *options)
    assert result.returncode == 1
    assert "the coordinator ended with exit code 1 before it listened" in result.stderr
    assert "Traceback" not in result.stderr


def test_words_that_cannot_be_taken_apart_are_refused(run_ddp_bp, tmp_path) -> None:
    result = run_ddp_bp("train", "digits", "--run-dir", tmp_path / "run", "--coordinator-shell", "ssh 'head")
    assert result.returncode == 2
    assert 'expected the words of a command, got "ssh \'head"' in result.stderr
    assert not (tmp_path / "run").exists()
