"""When a job is started again, and how its end is read from what ranks and launchers say."""

from __future__ import annotations

import os
import random

import pytest

from ddp_bp.cli.outcome import read_outcome, report_outcome, why_it_ended
from ddp_bp.cli.supervise import LONGEST_DELAY_SECONDS, Restarts, Seen


def test_progress_fills_the_budget_up_again_and_nothing_else_does() -> None:
    restarts = Restarts(2)
    assert [restarts.allow(step) for step in (0, 0, 0)] == [True, True, False]
    assert [restarts.allow(step) for step in (7, 7, 7)] == [True, True, False]
    # An older checkpoint, since a newer one was damaged, is no progress.
    assert not restarts.allow(0)
    assert restarts.allow(8)
    assert restarts.count == "1 of 2"
    assert not Restarts(0).allow(100)


def test_each_restart_in_a_row_waits_longer_up_to_a_limit_and_not_all_jobs_alike() -> None:
    restarts, delays = Restarts(9, random.Random(1)), []
    for _ in range(9):
        assert restarts.allow(3)
        delays.append(restarts.delay_seconds())
    for place, delay in enumerate(delays):
        longest = min(LONGEST_DELAY_SECONDS, 0.5 * 2**place)
        assert longest / 2 <= delay <= longest
    restarts.allow(4)
    assert restarts.delay_seconds() <= 0.5
    assert len({Restarts(1, random.Random(seed)).allow(0) for seed in range(3)}) == 1
    first = [Restarts(1, random.Random(seed)) for seed in range(3)]
    assert all(budget.allow(0) for budget in first)
    assert len({budget.delay_seconds() for budget in first}) == 3


def test_what_a_start_has_come_to_is_read_from_the_answers_of_its_coordinators() -> None:
    def answer(recoveries: int, step_age: float | None, wanted: int | None = None) -> dict:
        ranks = [{"last_step_age_seconds": None}, {"last_step_age_seconds": step_age}]
        return {"recoveries": recoveries, "wanted_world_size": wanted, "ranks": ranks}

    seen = Seen()
    for said in (None, answer(3, None), answer(4, None, 2)):
        seen.note(said)
    assert (seen.num_recoveries, seen.has_trained, seen.wanted) == (1, False, 2)
    # A coordinator that has taken the place of one that was killed knows no step yet.
    for said in (answer(5, 0.1), answer(5, None), None):
        seen.note(said)
    assert (seen.num_recoveries, seen.has_trained, seen.wanted) == (2, True, None)


def test_the_word_of_a_rank_is_told_from_what_it_prints(capfd: pytest.CaptureFixture[str]) -> None:
    report_outcome(75)
    line = capfd.readouterr().err
    assert line.endswith("\n")
    assert read_outcome(line.rstrip("\n")) == ("", 75)
    assert read_outcome("half a line" + line.rstrip("\n")) == ("half a line", 75)
    assert read_outcome("ddp-bp outcome 0") == ("ddp-bp outcome 0", None)
    assert os.linesep == "\n"


OPEN_MPI = """--------------------------------------------------------------------------
prterun noticed that process rank 1 with PID 14776 on node vm exited on
signal 9 (Killed).
--------------------------------------------------------------------------
"""
MPICH = """
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 4711 RUNNING AT node-3
=   EXIT CODE: 11
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
===================================================================================
"""
SLURM = "srun: error: d2: task 3: Out Of Memory\nsrun: launch/slurm: _step_signal: Terminating StepId=7.0"
LOST = """--------------------------------------------------------------------------
PRTE has lost communication with a remote daemon.

  HNP daemon   : [prterun-h1-12@0,0] on node h1
  Remote daemon: [prterun-h1-12@0,1] on node h2

This is usually due to either a failure of the TCP network
connection to the node, or possibly an internal failure of
the daemon itself. We cannot recover from this failure, and
therefore will terminate the job.
--------------------------------------------------------------------------
"""


@pytest.mark.parametrize(
    ("said", "exit_code", "why"),
    [
        (OPEN_MPI, 137, "rank 1 on vm was killed by SIGKILL"),
        (MPICH, 11, "the rank of process 4711 on node-3 was killed by SIGSEGV"),
        (SLURM, 1, "rank 3 on d2 ended: Out Of Memory"),
        (LOST, 0, "mpirun lost a host"),
        ("", -9, "mpirun was killed by SIGKILL"),
        ("something else", 3, "ranks were lost, and mpirun ended with exit code 3"),
        ("something else", None, "ranks were lost, and mpirun did not end with the last of them"),
    ],
)
def test_a_death_is_explained_by_what_the_launcher_says(said: str, exit_code: int | None, why: str) -> None:
    assert why_it_ended(said.splitlines(), exit_code) == why
