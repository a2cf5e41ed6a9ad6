"""All communicators pass one conformance suite; the MPI one with real processes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from conformance import CHECKS, check_all
from support import mpi_name, run_to_end
from support import mpirun as mpirun_command

from ddp_bp.errors import DeadlineError
from ddp_bp.parallel.single import SingleCommunicator
from ddp_bp.parallel.threads import run_ranks


def test_one_process() -> None:
    assert check_all(SingleCommunicator()) == len(CHECKS)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_threads(size: int) -> None:
    assert run_ranks(size, check_all) == [len(CHECKS)] * size


@pytest.mark.mpi
@pytest.mark.parametrize("size", [1, 2, 3])
def test_mpi(mpirun, size: int) -> None:
    result = mpirun(size, [Path(__file__).parent / "conformance.py"])
    assert result.stdout.strip() == f"{size} ranks passed {len(CHECKS)} checks", result.stderr


@pytest.mark.mpi
def test_a_rank_that_is_killed_while_gradients_are_exchanged() -> None:
    """Under Open MPI the others end their exchange and go on; under MPICH all end."""
    command = [*mpirun_command(3), sys.executable, Path(__file__).parent / "dying_exchange.py"]
    if mpi_name() == "MPICH":
        assert run_to_end(command, 60).returncode != 0
    else:
        result = run_to_end([command[0], "--with-ft", "ulfm", *command[1:]], 60)
        assert result.stdout.strip() == "2 of 3 ranks went on", result.stderr


@pytest.mark.mpi
@pytest.mark.ulfm
def test_a_call_gives_its_result_or_says_that_a_rank_has_died() -> None:
    program = Path(__file__).parent / "dying_calls.py"
    for _ in range(3):
        command = [*mpirun_command(8), sys.executable, program]
        result = run_to_end([command[0], "--with-ft", "ulfm", *command[1:]], 60)
        assert result.stdout.strip() == "7 deaths", result.stderr


def test_a_thread_that_stays_away_is_a_deadline_error_and_not_a_hang() -> None:
    def rank(comm):
        if comm.rank == 0:
            comm.barrier()

    with pytest.raises(DeadlineError, match="rank 0 of 2"):
        run_ranks(2, rank, deadline_seconds=0.2)


def test_the_first_error_of_a_thread_is_raised() -> None:
    def rank(comm):
        if comm.rank == 1:
            raise KeyError("boom")
        comm.allgather(np.zeros(1), np.zeros((2, 1)))

    with pytest.raises(KeyError, match="boom"):
        run_ranks(2, rank)


@pytest.mark.mpi
def test_silent_singletons_are_refused_with_launcher_and_library_named(run_python) -> None:
    code = "from ddp_bp.parallel.mpi import open_communicator; open_communicator(launched_size=4)"
    result = run_python(["-c", code])
    assert result.returncode != 0
    for part in ("LaunchError", "4 ranks were asked for", "world of 1", "mpiexec is", mpi_name()):
        assert part in result.stderr
