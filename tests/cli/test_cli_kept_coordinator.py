"""A coordinator that is killed, or breaks, is started again at the same address, but not for ever."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support import wait_until

from ddp_bp.cli import coordinator as coordinator_command
from ddp_bp.cli import kept_coordinator
from ddp_bp.cli.kept_coordinator import CRASHED_EXIT_CODE, MOST_TIMES, KeptCoordinator
from ddp_bp.cli.processes import CoordinatorProcess
from ddp_bp.coordinator.address import CoordinatorAddress, write_address
from ddp_bp.errors import LaunchError

DEADLINE_SECONDS = 10.0


class Coordinators:
    """Processes that do nothing, in the place of coordinators."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.started: list[subprocess.Popen[bytes]] = []
        self.told: list[tuple[Sequence[str], bool]] = []
        self.said: list[str] = []
        self.refuses = False
        self.code = "input()"
        self.through_shell = False

    def begin(self, overrides: Sequence[str], takes_over: bool) -> CoordinatorProcess:
        if self.refuses:
            raise LaunchError("the port is taken")
        process = subprocess.Popen([sys.executable, "-c", self.code], stdin=subprocess.PIPE)
        self.started.append(process)
        self.told.append((overrides, takes_over))
        write_address(self.run_dir, CoordinatorAddress(process.pid, "h", 7, 8, "r", "tcp://h:7", "http://h:8/"))
        return CoordinatorProcess(process, -1, self.through_shell)

    def kill(self) -> None:
        self.started[-1].kill()
        self.started[-1].wait()


@pytest.fixture
def coordinators(tmp_path: Path) -> Iterator[Coordinators]:
    made = Coordinators(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.communicate()


def test_one_that_is_killed_is_started_again_at_its_ports(coordinators: Coordinators) -> None:
    kept = KeptCoordinator(coordinators.begin, coordinators.run_dir, coordinators.said.append)
    assert kept.check() is None and kept.address.port == 7
    coordinators.kill()
    assert kept.check() is None
    assert kept.num_takeovers == 1
    assert coordinators.told == [((), False), (("coordinator.port=7", "coordinator.http_port=8"), True)]
    assert "was killed by SIGKILL; another process has taken its place" in coordinators.said[0]
    kept.release()
    coordinators.kill()
    assert kept.check() == -9, "once it has been let go of, nobody takes its place"
    assert kept.wait(DEADLINE_SECONDS) == -9


def test_one_that_ends_by_itself_stays_so(coordinators: Coordinators) -> None:
    kept = KeptCoordinator(coordinators.begin, coordinators.run_dir, coordinators.said.append)
    coordinators.started[0].communicate(b"\n")
    assert kept.check() == 0 and len(coordinators.started) == 1


def test_one_that_is_killed_again_and_again_is_given_up(coordinators: Coordinators) -> None:
    kept = KeptCoordinator(coordinators.begin, coordinators.run_dir, coordinators.said.append)
    for _ in range(MOST_TIMES):
        coordinators.kill()
        assert kept.check() is None
    coordinators.kill()
    assert kept.check() == -9
    assert len(coordinators.started) == 1 + MOST_TIMES


def test_one_that_cannot_be_started_again_is_given_up(coordinators: Coordinators) -> None:
    kept = KeptCoordinator(coordinators.begin, coordinators.run_dir, coordinators.said.append)
    coordinators.kill()
    coordinators.refuses = True
    assert kept.check() == -9
    assert "could not be started again: the port is taken" in coordinators.said[0]


def test_where_nobody_else_has_the_time_a_thread_looks_after_it(
    coordinators: Coordinators, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_coordinator, "POLL_SECONDS", 0.01)
    kept = KeptCoordinator(coordinators.begin, coordinators.run_dir, coordinators.said.append)
    kept.watch()
    coordinators.kill()
    wait_until(lambda: kept.num_takeovers == 1, "another coordinator", DEADLINE_SECONDS)
    coordinators.kill()
    wait_until(lambda: kept.num_takeovers == 2, "a third one", DEADLINE_SECONDS)
    kept.release()


def test_after_the_job_it_is_left_its_time_and_nobody_takes_its_place(coordinators: Coordinators) -> None:
    kept = KeptCoordinator(coordinators.begin, coordinators.run_dir, coordinators.said.append)
    kept.linger(0.1, lambda: False)
    looks = iter([False, False, True])
    kept.linger(DEADLINE_SECONDS, lambda: next(looks))
    assert list(looks) == [] and coordinators.started[0].poll() is None
    coordinators.kill()
    kept.linger(DEADLINE_SECONDS, lambda: pytest.fail("it has ended by itself"))
    assert kept.check() == -9 and len(coordinators.started) == 1


def test_one_that_does_not_answer_any_more_is_killed_and_another_one_takes_its_place(
    coordinators: Coordinators,
) -> None:
    kept = KeptCoordinator(coordinators.begin, coordinators.run_dir, coordinators.said.append)

    def ask(answers: bool, begin: float, end: float) -> None:
        for now in np.arange(begin, end, 2.0):
            kept.note(answers, now)

    ask(False, 0.0, 100.0)
    assert kept.check() is None and coordinators.said == [], "it may be out of reach for HTTP"
    ask(True, 100.0, 101.0)
    ask(False, 102.0, 121.0)
    ask(True, 122.0, 123.0)
    ask(False, 124.0, 143.0)
    # Whoever asks was stopped itself.
    ask(False, 300.0, 319.0)
    assert coordinators.said == []
    coordinators.started[0].send_signal(signal.SIGSTOP)
    kept.note(False, 320.0)
    assert coordinators.started[0].wait(DEADLINE_SECONDS) == -signal.SIGKILL
    assert kept.check() is None and kept.num_takeovers == 1
    assert "has not answered for 20 s" in coordinators.said[0] and "another process has taken" in coordinators.said[1]
    ask(False, 322.0, 400.0)
    assert coordinators.started[1].poll() is None, "the next one has its own time"


def test_one_behind_a_shell_is_left_alone_since_its_ports_would_stay_taken(coordinators: Coordinators) -> None:
    coordinators.through_shell = True
    kept = KeptCoordinator(coordinators.begin, coordinators.run_dir, coordinators.said.append)
    for now in range(100):
        kept.note(now == 0, now)
    assert coordinators.said == [] and coordinators.started[0].poll() is None


def test_one_that_breaks_is_started_again_and_not_for_ever(coordinators: Coordinators) -> None:
    kept = KeptCoordinator(coordinators.begin, coordinators.run_dir, coordinators.said.append)
    coordinators.code = f"import sys; sys.exit({CRASHED_EXIT_CODE})"
    coordinators.kill()
    for _ in range(MOST_TIMES):
        assert kept.check() is None
        coordinators.started[-1].wait(DEADLINE_SECONDS)
    assert kept.check() == CRASHED_EXIT_CODE
    assert "ended with exit code 70; another process has taken its place" in coordinators.said[1]


def test_a_defect_of_a_coordinator_has_an_exit_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(config: object) -> int:
        raise MemoryError("a defect")

    monkeypatch.setattr(coordinator_command, "run", run)
    result = CliRunner().invoke(
        coordinator_command.coordinator, ["digits", "-n", "1", "--run-dir", str(tmp_path)], standalone_mode=False
    )
    assert result.return_value == CRASHED_EXIT_CODE
    assert "MemoryError: a defect" in result.output + capfd.readouterr().err


def test_a_path_that_a_coordinator_cannot_use_is_no_defect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: object) -> int:
        raise IsADirectoryError(21, "Is a directory", "ledger.jsonl")

    monkeypatch.setattr(coordinator_command, "run", run)
    arguments = ["digits", "-n", "1", "--run-dir", str(tmp_path)]
    result = CliRunner().invoke(coordinator_command.coordinator, arguments, standalone_mode=False)
    assert isinstance(result.exception, IsADirectoryError)
