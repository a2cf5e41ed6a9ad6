"""The units for systemd: right in its own eyes, tight, and their command starts a coordinator."""

from __future__ import annotations

import shutil
import signal
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus import free_port
from support import REPOSITORY, ddp_bp, status_of, summary_of, wait_for_step, wait_until

Start = Callable[..., subprocess.Popen[str]]

UNITS = REPOSITORY / "deploy" / "systemd"
UNIT = UNITS / "ddp-bp-coordinator@.service"
PROGRAM = "/opt/ddp-bp/bin/ddp-bp"
MOST_EXPOSED = 2.0
"""On systemd's scale from 0 to 10; a service without any protection has 9.6."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs Debian's package systemd")


def installed_unit(folder: Path) -> Path:
    """The unit as it is after an installation, whose program is that of this environment."""
    unit = folder / UNIT.name
    unit.write_text(UNIT.read_text().replace(PROGRAM, str(Path(sys.executable).parent / "ddp-bp")))
    return unit


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@needs_systemd
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    result = analyze("verify", "--man=no", installed_unit(tmp_path))
    complaints = [line for line in (result.stdout + result.stderr).splitlines() if UNIT.name.split("@")[0] in line]
    assert result.returncode == 0 and complaints == [], result.stderr


@needs_systemd
def test_the_service_can_do_little_else(tmp_path: Path) -> None:
    result = analyze("security", "--offline=yes", f"--threshold={MOST_EXPOSED * 10:g}", installed_unit(tmp_path))
    assert result.returncode == 0, result.stdout


def command_of(run_dir: Path, **settings: object) -> list[str]:
    """The command of the unit for the job of example.env, with other settings, and in the test's own folder."""
    lines = UNIT.read_text().replace("\\\n", " ").splitlines()
    (command,) = (line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart="))
    known = dict(line.split("=", 1) for line in (UNITS / "example.env").read_text().splitlines() if line[:1] not in "#")
    command = command.replace("/var/lib/ddp-bp/%i", str(run_dir))
    words = string.Template(command).substitute(known | {"LINGER_SECONDS": 0} | settings).split()
    assert words[0] == PROGRAM
    return [sys.executable, "-m", "ddp_bp", *words[1:]]


def test_its_command_starts_a_coordinator_that_ends_when_it_is_told_to(start_command: Start, tmp_path: Path) -> None:
    process = start_command(command_of(tmp_path / "run", PORT=0, HTTP_PORT=0))
    status = wait_until(lambda: status_of(tmp_path / "run"), "the coordinator", 30)
    assert (status["recipe"], status["world_size"], status["state"]) == ("digits", 2, "waiting")
    process.send_signal(signal.SIGTERM)
    assert "no rank is here yet" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=20)
    assert "Traceback" not in stderr
    assert not (tmp_path / "run" / "coordinator.json").exists()


@pytest.mark.mpi
def test_when_it_is_killed_and_started_again_ranks_go_on(start_command: Start, tmp_path: Path) -> None:
    assert "\nRestart=on-failure\n" in UNIT.read_text()
    run_dir, port = tmp_path / "run", free_port()
    command = command_of(run_dir, WORKERS=1, PORT=port, HTTP_PORT=free_port())
    killed = start_command(command)
    wait_until(lambda: status_of(run_dir), "the coordinator", 30)
    rank = ddp_bp("worker", "digits", "--run-dir", run_dir, "--coordinator", f"tcp://127.0.0.1:{port}")
    training = start_command([*rank, "--set", "train.epochs=40"])
    step = wait_for_step(run_dir, 20)["step"]
    killed.kill()
    killed.wait(10)
    coordinator = start_command(command)
    wait_for_step(run_dir, step + 1)
    _, stderr = training.communicate(timeout=60)
    assert training.returncode == 0, stderr
    assert coordinator.wait(20) == 0
    summary = summary_of(run_dir)
    assert (summary["epochs"], summary["recoveries"], summary["resumed_from_step"]) == (40, 0, None)
