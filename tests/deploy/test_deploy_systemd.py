"""The units for systemd: right in its own eyes, tight, and their command starts a coordinator."""

from __future__ import annotations

import shutil
import signal
import string
import subprocess
import sys
from pathlib import Path

import pytest
from support import REPOSITORY, end_tree, start, status_of, wait_until

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


def test_its_command_starts_a_coordinator_that_ends_when_it_is_told_to(tmp_path: Path) -> None:
    lines = UNIT.read_text().replace("\\\n", " ").splitlines()
    (command,) = (line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart="))
    settings = dict(
        line.split("=", 1) for line in (UNITS / "example.env").read_text().splitlines() if line and line[0] != "#"
    )
    # Any free port, and nobody to wait for.
    settings |= {"PORT": "0", "HTTP_PORT": "0", "LINGER_SECONDS": "0"}
    words = string.Template(command.replace("/var/lib/ddp-bp/%i", str(tmp_path / "run"))).substitute(settings).split()
    assert words[0] == PROGRAM
    process = start([sys.executable, "-m", "ddp_bp", *words[1:]])
    try:
        status = wait_until(lambda: status_of(tmp_path / "run"), "the coordinator", 30)
        assert (status["recipe"], status["world_size"], status["state"]) == ("digits", 2, "waiting")
        process.send_signal(signal.SIGTERM)
        assert "no rank is here yet" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=20)
    finally:
        end_tree(process)
    assert "Traceback" not in stderr
    assert not (tmp_path / "run" / "coordinator.json").exists()
