"""All communicators pass one conformance suite; the MPI one with real processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conformance import CHECKS, check_all
from support import mpi_name

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
