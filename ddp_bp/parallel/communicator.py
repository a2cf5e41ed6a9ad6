"""What the rest of the package may ask of a group of ranks.

One strategy a file: `mpi`, `single` (one process) and `threads` (ranks as threads of one process, for tests). All pass
the same conformance suite. The verbs keep their MPI names; every method except `abort`,
`revoke`, `is_revoked`, `dead` and `close` is collective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]
Bounds = tuple[int, int]


class Communicator(Protocol):
    """A fixed group of ranks. Arrays passed in must be C-contiguous; receiving arrays are written in place."""

    @property
    def rank(self) -> int:
        """This process's number in the group, from 0."""

    @property
    def size(self) -> int:
        """The number of ranks: the world size."""

    @property
    def can_lose_ranks(self) -> bool:
        """Whether the others can go on when one of several ranks dies. The same on all ranks."""

    @property
    def allows_threads(self) -> bool:
        """Whether another thread of each process may use another communicator at the same time."""

    def barrier(self) -> None:
        """Return on every rank once all have called it."""

    def allgather(self, send: Array, receive: Array) -> None:
        """Gather equal pieces: `send` (n,) of every rank into `receive` (size, n), in rank order."""

    def exchange(self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]) -> None:
        """Point-to-point messages all at once: (destination, array) out, (source, array) in.

        Between any two ranks, messages match in the order of their lists. No rank names itself.
        """

    def start_exchange(
        self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]
    ) -> Callable[[], None]:
        """Begin what `exchange` does; the function that it returns waits until all is received and sent.

        Several may be under way, of which all ranks begin the same in the same order. Arrays are MPI's until then.
        """

    def allreduce_sum(self, array: Array) -> None:
        """Replace `array` (n,) by its sum over all ranks, element by element.

        In which order is up to the implementation, so that this is for comparison and never for what reaches weights or
        a reported loss.
        """

    def broadcast(self, buffer: Array, root: int) -> None:
        """Overwrite `buffer` with that of rank `root`."""

    def allgather_bytes(self, data: bytes) -> list[bytes]:
        """Everyone's `data`, which may differ in length, in rank order. For setting up, not for the training step."""

    def part(self, takes_part: bool) -> Communicator | None:
        """A communicator of its own for those that take part, in their order, which they must close; None on others."""

    def duplicate(self) -> Communicator:
        """A communicator of the same ranks, which they must close, for another thread of each of them.

        Whoever waits on it leaves the processor to those who compute.
        """

    def revoke(self) -> None:
        """Have every call of any rank on this communicator end with PeerLostError, from now on. Not collective.

        Without effect where `can_lose_ranks` is false: then all ranks end when one dies.
        """

    def is_revoked(self) -> bool:
        """Whether a rank has revoked it, as far as is known here. Not collective."""

    def dead(self) -> tuple[int, ...]:
        """The ranks that have died, as far as is known here. Not collective."""

    def agree(self, flags: int) -> int:
        """The bitwise and of everyone's non-negative `flags`; 0 if a rank has died. The same on all ranks that live.

        That is so even if some die in the middle of it, in which it differs from all other calls, and on a communicator
        that has been revoked: with it ranks find out whether all have come through.
        """

    def survivors(self) -> tuple[Communicator, tuple[int, ...]]:
        """After a PeerLostError: a communicator of the ranks that live, in their order, and their numbers in this one.

        It takes the place of this one, on which every other call of any rank ends with PeerLostError from now on.
        """

    def abort(self, exit_code: int) -> NoReturn:
        """End every rank at once, without cleaning up. Not collective: the last resort of one rank."""

    def describe(self) -> str:
        """Which implementation this is, for messages and logs."""

    def close(self) -> None:
        """Release what the communicator holds."""
