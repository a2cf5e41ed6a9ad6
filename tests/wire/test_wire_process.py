"""Names of processes: what is killed is that very process, and nobody who has its number by now."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ddp_bp.wire.process import kill_process, process_name


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def test_a_process_is_killed_by_its_name(child: subprocess.Popen[bytes]) -> None:
    name = process_name(child.pid)
    assert name == process_name(child.pid) != process_name(os.getpid())
    assert kill_process(child.pid, name) == "killed"
    assert child.wait(10) == -signal.SIGKILL
    assert kill_process(child.pid, name) == "gone"
    assert process_name(child.pid) == ""


def test_one_that_has_its_number_by_now_is_left_alone(child: subprocess.Popen[bytes]) -> None:
    before = process_name(child.pid).rsplit(" ", 1)
    assert kill_process(child.pid, f"{before[0]} {int(before[1]) - 1}") == "gone"
    assert child.poll() is None


@pytest.mark.parametrize("name", ["", "another-boot pid:[1] 7 8"])
def test_a_process_elsewhere_is_left_alone(child: subprocess.Popen[bytes], name: str) -> None:
    assert kill_process(child.pid, name) == "elsewhere"
    assert child.poll() is None
