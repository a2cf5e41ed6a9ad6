"""Names of processes: what is killed is that very process, and nobody who has its number by now."""

from __future__ import annotations

import json
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


APART = ["unshare", "--pid", "--fork", "--kill-child"]
SAY = """
import json, os, subprocess, sys
from ddp_bp.wire.process import kill_process, process_name
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
done = [kill_process(child.pid, name) for name in (sys.argv[1], process_name(child.pid))]
print(json.dumps([child.pid, process_name(os.getpid()), *done]))
"""


@pytest.mark.hosts
@pytest.mark.parametrize("has_own_proc", [True, False])
def test_processes_that_are_numbered_apart_leave_each_other_alone(
    child: subprocess.Popen[bytes], has_own_proc: bool
) -> None:
    """As in containers on one machine: the same number may be another process, and all have the machine's start."""
    apart = [*APART, "--mount-proc"] if has_own_proc else APART
    if subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        pytest.skip("process namespaces cannot be made here")
    told = subprocess.run(
        [*apart, sys.executable, "-c", SAY, process_name(child.pid)], capture_output=True, text=True, check=True
    )
    number, name, of_ours, of_its_own = json.loads(told.stdout)
    assert of_ours == "elsewhere" and child.poll() is None
    # Where /proc numbers processes otherwise, it would tell of another one under that number.
    assert (bool(name), of_its_own) == ((True, "killed") if has_own_proc else (False, "elsewhere"))
    assert kill_process(number, name) == "elsewhere"
