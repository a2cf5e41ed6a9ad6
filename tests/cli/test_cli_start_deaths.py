"""Ranks that are missing among the children of a launcher, by real processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from ddp_bp.cli.start_deaths import START_DEATH_SECONDS, StartDeaths

LAUNCHER = """
import subprocess, sys
pipe = subprocess.PIPE
command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
children = [subprocess.Popen(command, stdin=pipe, stdout=pipe) for _ in range(2)]
for child in children:
    child.stdout.readline()
print("started", flush=True)
for line in sys.stdin:
    children.pop().communicate(b"")
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


def end_one(launcher: subprocess.Popen[str]) -> None:
    assert launcher.stdin is not None and launcher.stdout is not None
    print(file=launcher.stdin, flush=True)
    assert launcher.stdout.readline() == "ended\n"


def test_one_that_is_missing_for_long_is_dead(launcher: subprocess.Popen[str]) -> None:
    deaths, unknown = StartDeaths(launcher.pid, 2), StartDeaths(launcher.pid, 0)
    assert not any(deaths.seen(now) for now in (0.0, 100.0))
    end_one(launcher)
    assert not any(deaths.seen(now) for now in (200.0, 200.0 + START_DEATH_SECONDS))
    assert deaths.seen(200.1 + START_DEATH_SECONDS)
    assert not any(unknown.seen(now) for now in (0.0, 100.0))


def test_a_launcher_behind_a_script_says_nothing_of_its_ranks() -> None:
    script = subprocess.Popen(["sh", "-c", "echo started; cat; true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert script.stdout is not None and script.stdout.readline() == b"started\n"
    deaths = StartDeaths(script.pid, 2)
    assert not any(deaths.seen(now) for now in (0.0, 100.0))
    script.communicate()


def test_where_all_have_ended_the_launcher_does_so_by_itself(launcher: subprocess.Popen[str]) -> None:
    deaths = StartDeaths(launcher.pid, 2)
    for _ in range(2):
        end_one(launcher)
    assert not any(deaths.seen(now) for now in (0.0, 100.0))
