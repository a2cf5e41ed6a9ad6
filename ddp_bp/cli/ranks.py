"""Being one rank of a job: finding the others, and ending as all of them end. Knows not what the ranks do."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from ddp_bp.cli.deadline import deadline
from ddp_bp.cli.environment import launched_ranks, prepare_for_deaths, prepare_mpi, session_folder
from ddp_bp.cli.lifeline import end_with_launcher
from ddp_bp.errors import DdpError, LaunchError, PeerLostError, RemoteError
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.mpi import finalize, open_communicator
from ddp_bp.parallel.single import SingleCommunicator
from ddp_bp.worker.failures import RankFailure

END_SECONDS = 120.0
"""How long MPI may take to end a rank, or all, where some may have died: it waits for dead ones now and then. And for
rank 0, which may linger for Prometheus, and then wait for its coordinator to write."""


def run_as_rank(
    world_size: int | None,
    work: Callable[[Communicator], int | None],
    *,
    supervised: bool,
    report: Callable[[int], None] = lambda _: None,
) -> int:
    """Do `work`, which gives an exit code, as one rank of the job that a launcher started; without one, as the only.

    Args:
        world_size: refuse to run unless there are this many ranks.
        work: gives None if this rank has nothing to say of how the job has ended. On an error it raises on all ranks,
            as `together` does; one that only this rank meets ends the job.
        supervised: whether the process that started the launcher finds out by itself how the job ended.
        report: is told the exit code if it is for a reason of our own: not if ranks were lost.

    Returns:
        The exit code of this process.

    Raises:
        LaunchError: there are not `world_size` ranks.
    """
    launched = launched_ranks()
    if launched is not None:
        end_with_launcher(session_folder())
    try:
        communicator = _open(launched, world_size)
    except LaunchError as error:
        # Each of N silent singletons believes to be rank 0; only the one that the launcher calls so speaks.
        if launched is None or launched[1] == 0:
            raise
        return error.exit_code
    code, agreed, is_loss = _outcome(communicator, work)
    if not is_loss and code is not None:
        report(code)
    code = code or 0
    with deadline(END_SECONDS if communicator.can_lose_ranks else 0.0):
        if not agreed and communicator.size > 1:
            # The other ranks do not know, and may be waiting for this one.
            communicator.abort(code)
        if agreed:
            communicator.close()
        if communicator.can_lose_ranks:
            # Otherwise it would do so at the very end of Python, where nothing can hold it to a deadline.
            finalize()
    # mpirun would print a page about an exit code that all ranks agreed on.
    return 0 if supervised and agreed else code


def _outcome(communicator: Communicator, work: Callable[[Communicator], int | None]) -> tuple[int | None, bool, bool]:
    """The exit code of the job, or None, whether all ranks know of it, and whether it is for the loss of other ranks.

    Shows the error if that is for this rank to do.
    """
    try:
        return work(communicator), True, False
    except RemoteError as error:
        return error.exit_code, True, False
    except RankFailure as failure:
        if not failure.shown:
            _show(failure.error)
        return failure.exit_code, True, _restart_helps(failure.error)
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        if isinstance(error, PeerLostError) or type(error).__module__.startswith("mpi4py"):
            # MPI itself fails only if another rank or the way to it is gone.
            print(f"ddp-bp: rank {communicator.rank} lost another rank: {error}", file=sys.stderr, flush=True)
            return 1, False, True
        agreed = isinstance(error, DdpError) and error.on_every_rank
        if not agreed or communicator.rank == 0:
            _show(error)
        return getattr(error, "exit_code", 1), agreed, _restart_helps(error)


def _open(launched: tuple[int, int] | None, world_size: int | None) -> Communicator:
    if launched is None and world_size in (None, 1):
        return SingleCommunicator()
    size = world_size or (launched[0] if launched else None)
    prepare_mpi()
    return open_communicator(size, can_lose_ranks=prepare_for_deaths())


def _restart_helps(error: BaseException) -> bool:
    return isinstance(error, DdpError) and error.restart_helps


def _show(error: BaseException) -> None:
    if isinstance(error, DdpError):
        print(f"ddp-bp: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)
