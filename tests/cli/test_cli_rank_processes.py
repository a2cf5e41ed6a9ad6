"""Ranks that are missing among the children of a launcher, by real processes, and a launcher that does not end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from ddp_bp.cli.rank_processes import END_SECONDS, START_DEATH_SECONDS, RankProcesses

LAUNCHER = """
import os, subprocess, sys
pipe = subprocess.PIPE
command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
children = [subprocess.Popen(command, stdin=pipe, stdout=pipe) for _ in range(2)]
for child in children:
    child.stdout.readline()
print("started", flush=True)
ended = []
for line in sys.stdin:
    child = children.pop()
    if line == "unheard\\n":
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        ended.append(child)
    else:
        child.communicate(b"")
    print("ended", flush=True)
"""


@pytest.fixture
def launcher() -> Iterator[subprocess.Popen[str]]:
    """A process with two children, of which one ends for each line that it is told."""
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    yield process
    process.communicate()


def end_one(launcher: subprocess.Popen[str], how: str = "") -> None:
    """`how`: "unheard" if the launcher is not to take note of the end."""
    assert launcher.stdin is not None and launcher.stdout is not None
    print(how, file=launcher.stdin, flush=True)
    assert launcher.stdout.readline() == "ended\n"


def seen(processes: RankProcesses, *times: float) -> list[tuple[bool, bool]]:
    found = []
    for now in times:
        processes.look(now)
        found.append((processes.one_is_missing, processes.all_have_ended))
    return found


NOTHING, ONE_IS_MISSING, ALL_HAVE_ENDED = (False, False), (True, False), (False, True)


def test_one_that_is_missing_for_long_is_dead(launcher: subprocess.Popen[str]) -> None:
    processes, unknown = RankProcesses(launcher.pid, 2), RankProcesses(launcher.pid, 0)
    assert seen(processes, 0.0, 100.0) == [NOTHING, NOTHING]
    end_one(launcher)
    times = 200.0, 200.0 + START_DEATH_SECONDS, 200.1 + START_DEATH_SECONDS
    assert seen(processes, *times) == [NOTHING, NOTHING, ONE_IS_MISSING]
    assert seen(unknown, 0.0, 100.0) == [NOTHING, NOTHING]


def test_a_launcher_behind_a_script_says_nothing_of_its_ranks() -> None:
    script = subprocess.Popen(["sh", "-c", "echo started; cat; true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert script.stdout is not None and script.stdout.readline() == b"started\n"
    assert seen(RankProcesses(script.pid, 2), 0.0, 100.0) == [NOTHING, NOTHING]
    script.communicate()


def test_a_launcher_may_not_stay_for_long_without_ranks(launcher: subprocess.Popen[str]) -> None:
    processes, unknown = RankProcesses(launcher.pid, 2), RankProcesses(launcher.pid, 0)
    assert seen(processes, 0.0) == seen(unknown, 0.0) == [NOTHING]
    for _ in range(2):
        end_one(launcher)
    times = 200.0, 200.0 + END_SECONDS, 200.1 + END_SECONDS
    assert seen(processes, *times) == [NOTHING, NOTHING, ALL_HAVE_ENDED]
    assert seen(unknown, *times) == [NOTHING, NOTHING, NOTHING]


def test_it_may_not_have_heard_of_their_end(launcher: subprocess.Popen[str]) -> None:
    processes = RankProcesses(launcher.pid, 2)
    assert seen(processes, 0.0) == [NOTHING]
    for _ in range(2):
        end_one(launcher, "unheard")
    assert seen(processes, 200.0, 200.1 + END_SECONDS) == [NOTHING, ALL_HAVE_ENDED]


def test_one_process_among_many_ranks_may_be_a_helper_of_the_launcher(launcher: subprocess.Popen[str]) -> None:
    processes = RankProcesses(launcher.pid, 3)
    assert seen(processes, 0.0) == [NOTHING]
    for _ in range(2):
        end_one(launcher)
    assert seen(processes, 200.0, 300.0) == [NOTHING, NOTHING]


def test_a_rank_may_call_itself_something_else(launcher: subprocess.Popen[str], monkeypatch) -> None:
    processes = RankProcesses(launcher.pid, 2)
    assert seen(processes, 0.0) == [NOTHING]
    monkeypatch.setattr(sys, "executable", "something else")
    assert seen(processes, 100.0, 200.0) == [NOTHING, NOTHING]


def test_a_launcher_may_take_its_time_to_start_any(launcher: subprocess.Popen[str]) -> None:
    processes = RankProcesses(launcher.pid, 2)
    for _ in range(2):
        end_one(launcher)
    assert seen(processes, 0.0, 100.0) == [NOTHING, NOTHING]
