"""Processes of a job are found by the mark in their environment, and nobody else is met."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import end_tree, wait_until

from ddp_bp.chaos.disturb import Disturber
from ddp_bp.chaos.traces import Traces, describe_process
from ddp_bp.cli.environment import chaos_environment, deaths_asked_for, has_mark, job_environment, job_folder_of

MARK = f"a test, {os.getpid()}"
SLEEPER = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]


def start_sleeper(environment: dict[str, str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(SLEEPER, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    return process


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[str]]]:
    """One of the job, and one that is not."""
    started = [start_sleeper(chaos_environment(MARK, "")), start_sleeper(dict(os.environ))]
    yield started
    for process in started:
        end_tree(process)
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def traces() -> Traces:
    return Traces(lambda variables: has_mark(variables, MARK), job_folder_of)


def test_only_processes_of_the_job_are_met(sleepers: list[subprocess.Popen[str]], traces: Traces) -> None:
    own, other = sleepers
    disturber = Disturber(traces)
    assert traces.processes() == [own.pid]
    assert describe_process(own.pid).startswith(f"process {own.pid} ({sys.executable} -c import time; print(")
    assert disturber.kill([own.pid, other.pid, 2**22 + 1]) == [own.pid]
    assert own.wait(10) == -9 and other.poll() is None
    assert disturber.wait_until_gone(0.0) == []


def test_a_stopped_process_goes_on_when_its_time_has_come(
    sleepers: list[subprocess.Popen[str]], traces: Traces
) -> None:
    own, other = sleepers
    disturber, process = Disturber(traces), psutil.Process(own.pid)
    assert not disturber.stop(other.pid, None)
    assert disturber.stop(own.pid, until=100.0)
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "the process to stop", 5)
    disturber.wake(now=99.0)
    assert disturber.is_stopped(own.pid) and not disturber.some_are_stopped_for_good
    disturber.wake(now=100.0)
    assert not disturber.is_stopped(own.pid)
    wait_until(lambda: process.status() != psutil.STATUS_STOPPED, "the process to go on", 5)
    assert disturber.stop(own.pid, until=None) and disturber.some_are_stopped_for_good
    disturber.wake(now=1e9)
    assert disturber.some_are_stopped_for_good, "only its end is the end of that"
    disturber.end_all()
    own.wait(10)
    disturber.wake(now=1e9)
    assert not disturber.some_are_stopped_for_good


def test_what_a_job_has_left_is_what_its_processes_used(tmp_path: Path, traces: Traces) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    started = []
    for folder, mark in ((own, MARK), (other, "another job")):
        folder.mkdir()
        started.append(start_sleeper({**job_environment(folder), **chaos_environment(mark, "")}))
    try:
        assert traces.left_behind() == []
        traces.look()
        assert traces.left_behind() == [own]
    finally:
        for process in started:
            end_tree(process)
            assert process.stdout is not None
            process.stdout.close()
    traces.remove()
    assert traces.left_behind() == [] and not own.exists() and other.exists()


def test_deaths_are_for_jobs_that_were_given_some() -> None:
    assert deaths_asked_for(chaos_environment(MARK, "[]")) == "[]"
    assert deaths_asked_for(chaos_environment(MARK, "")) == ""


def test_waiting_has_an_end(sleepers: list[subprocess.Popen[str]], traces: Traces) -> None:
    began = time.monotonic()
    assert Disturber(traces).wait_until_gone(0.1) == [sleepers[0].pid]
    assert time.monotonic() - began < 5
