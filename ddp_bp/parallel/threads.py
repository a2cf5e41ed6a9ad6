"""Ranks as threads of one process, so that tests can run a group without a launcher. Not for training.

Every wait has a deadline: a rank that stays away gives the others a DeadlineError instead of a hang. A rank can die,
and the others then meet PeerLostError as they do under MPI.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import reduce
from operator import and_
from time import monotonic
from typing import Any, NoReturn, TypeVar

import numpy as np

from ddp_bp.errors import DeadlineError, PeerLostError
from ddp_bp.parallel.communicator import Array, Communicator

Result = TypeVar("Result")


class RankKilled(BaseException):
    """Unwinds a rank that has died, once all others have ended and can see nothing of that."""


class _Board:
    """What the threads share: one slot a rank, and a barrier to separate writing from reading.

    `dead` and `leaving` are the ranks that died, and those that wait in `survivors` for a board of their own.
    `parts` are boards of these ranks or some of them, by number, on which who dies here is dead as well. `votes` are
    what ranks said in each `agree`, by rank, and `verdicts` what came of it.
    """

    def __init__(self, size: int, deadline_seconds: float, over: threading.Event | None = None) -> None:
        self.size = size
        self.over = over or threading.Event()
        self.slots: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)
        self.deadline_seconds = deadline_seconds
        self.changed = threading.Condition()
        self.dead: set[int] = set()
        self.leaving: set[int] = set()
        self.is_revoked = False
        self.parts: list[tuple[_Board, tuple[int, ...]]] = []
        self.votes: list[dict[int, int]] = []
        self.verdicts: dict[int, int] = {}
        self.next: tuple[_Board, tuple[int, ...]] | None = None

    def bury(self, rank: int) -> None:
        """Let the others know that this rank has died, here or on a board that took the place of this one."""
        with self.changed:
            self.dead.add(rank)
            self.barrier.abort()
            self.changed.notify_all()
            following = [*self.parts, *([] if self.next is None else [self.next])]
        for board, numbers in following:
            if rank in numbers:
                board.bury(numbers.index(rank))

    def add_part(self, board: _Board, numbers: tuple[int, ...]) -> None:
        """Have those that are dead, and that die from now on, be so on that board as well."""
        with self.changed:
            self.parts.append((board, numbers))
            dead = self.dead & set(numbers)
        for rank in dead:
            board.bury(numbers.index(rank))

    def agree(self, rank: int, turn: int, flags: int) -> int:
        """What comes of the `turn`-th vote, once all that live have taken part in it."""
        with self.changed:
            self.votes += [{} for _ in range(turn + 1 - len(self.votes))]
            votes = self.votes[turn]
            votes[rank] = flags
            self.changed.notify_all()
            arrived = self.changed.wait_for(
                lambda: turn in self.verdicts or len(votes.keys() | self.dead) == self.size, self.deadline_seconds
            )
            if not arrived:
                raise DeadlineError(
                    f"rank {rank} of {self.size}: not all that live agreed within {self.deadline_seconds} s"
                )
            if turn not in self.verdicts:
                self.verdicts[turn] = 0 if self.dead else reduce(and_, votes.values())
                self.changed.notify_all()
            return self.verdicts[turn]

    def leave(self, rank: int) -> tuple[_Board, tuple[int, ...]]:
        """Wait until every rank that lives is here; the board that they go on with, and their numbers on this one."""
        with self.changed:
            self.leaving.add(rank)
            self.barrier.abort()
            self.changed.notify_all()
            arrived = self.changed.wait_for(
                lambda: self.next is not None or len(self.leaving | self.dead) == self.size, self.deadline_seconds
            )
            if not arrived:
                raise DeadlineError(
                    f"rank {rank} of {self.size}: not all that live came within {self.deadline_seconds} s"
                )
            if self.next is None:
                living = tuple(sorted(self.leaving - self.dead))
                self.next = (_Board(len(living), self.deadline_seconds, self.over), living)
                self.changed.notify_all()
            return self.next


class ThreadCommunicator:
    """One thread's end of a group. See `Communicator` for what each method means."""

    def __init__(self, board: _Board, rank: int) -> None:
        self._board = board
        self.rank = rank
        self.size = board.size
        self.can_lose_ranks = True
        self.allows_threads = True
        self._num_votes = 0

    def barrier(self) -> None:
        self._check_alive()
        try:
            self._board.barrier.wait(self._board.deadline_seconds)
        except threading.BrokenBarrierError:
            if self._board.dead or self._board.leaving or self._board.is_revoked:
                raise PeerLostError(f"rank {self.rank} of {self.size}: another rank has died") from None
            raise DeadlineError(
                f"rank {self.rank} of {self.size}: another rank failed or stayed away "
                f"for {self._board.deadline_seconds} s"
            ) from None

    def _share(self, value: object) -> list[Any]:
        """Everyone's value. The caller must pass a barrier before it changes what it shared."""
        self._board.slots[self.rank] = value
        self.barrier()
        return list(self._board.slots)

    def allgather(self, send: Array, receive: Array) -> None:
        for row, piece in zip(receive, self._share(send), strict=True):
            np.copyto(row, piece)
        self.barrier()

    def exchange(self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]) -> None:
        everyone = self._share(list(sends))
        queues = {
            source: iter([array for destination, array in outgoing if destination == self.rank])
            for source, outgoing in enumerate(everyone)
        }
        for source, array in receives:
            np.copyto(array, next(queues[source]))
        self.barrier()

    def start_exchange(
        self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]
    ) -> Callable[[], None]:
        self.exchange(sends, receives)
        return lambda: None

    def allreduce_sum(self, array: Array) -> None:
        total = np.sum(self._share(array), axis=0, dtype=array.dtype)
        self.barrier()
        np.copyto(array, total)

    def broadcast(self, buffer: Array, root: int) -> None:
        source = self._share(buffer)[root]
        if source is not buffer:
            np.copyto(buffer, source)
        self.barrier()

    def allgather_bytes(self, data: bytes) -> list[bytes]:
        everyone = self._share(data)
        self.barrier()
        return everyone

    def part(self, takes_part: bool) -> Communicator | None:
        everyone = self._share(takes_part)
        self.barrier()
        numbers = tuple(rank for rank, takes in enumerate(everyone) if takes)
        own = _Board(len(numbers), self._board.deadline_seconds, self._board.over) if self.rank == 0 else None
        board = self._share(own)[0]
        if self.rank == 0:
            self._board.add_part(board, numbers)
        self.barrier()
        return ThreadCommunicator(board, numbers.index(self.rank)) if takes_part else None

    def duplicate(self) -> Communicator:
        duplicate = self.part(True)
        assert duplicate is not None
        return duplicate

    def revoke(self) -> None:
        self._board.is_revoked = True
        self._board.barrier.abort()

    def is_revoked(self) -> bool:
        self._check_alive()
        return self._board.is_revoked or bool(self._board.leaving)

    def dead(self) -> tuple[int, ...]:
        self._check_alive()
        return tuple(sorted(self._board.dead))

    def agree(self, flags: int) -> int:
        self._check_alive()
        self._num_votes += 1
        return self._board.agree(self.rank, self._num_votes - 1, flags)

    def survivors(self) -> tuple[Communicator, tuple[int, ...]]:
        self._check_alive()
        board, numbers = self._board.leave(self.rank)
        return ThreadCommunicator(board, numbers.index(self.rank)), numbers

    def _check_alive(self) -> None:
        if self.rank in self._board.dead:
            raise RankKilled

    def die(self) -> NoReturn:
        """Do nothing more, from here on, as if the process had been killed."""
        self._board.bury(self.rank)
        self._board.over.wait()
        raise RankKilled

    def abort(self, exit_code: int) -> NoReturn:
        self._board.barrier.abort()
        raise SystemExit(exit_code)

    def describe(self) -> str:
        return f"{self.size} threads of one process"

    def close(self) -> None:
        """Nothing to release."""


def run_ranks(
    size: int, function: Callable[[ThreadCommunicator], Result], deadline_seconds: float = 20.0
) -> list[Result]:
    """Run `function` on `size` ranks and return their results in rank order.

    The first exception of any rank is raised here, and the other ranks are released from their waits. A rank that has
    died has no result: None.
    """
    board = _Board(size, deadline_seconds)
    results: list[Any] = [None] * size
    failures: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = function(ThreadCommunicator(board, rank))
        except BaseException as error:
            # What a dead rank does once it may unwind is of no interest, whatever caught that it was killed.
            if rank not in board.dead:
                failures.append(error)
                board.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), name=f"rank {rank}", daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    deadline = monotonic() + 2 * deadline_seconds
    for rank, thread in enumerate(threads):
        while thread.is_alive() and rank not in board.dead and monotonic() < deadline:
            thread.join(0.05)
    board.over.set()
    for thread in threads:
        thread.join(1.0)
        if thread.is_alive():
            raise DeadlineError(f"{thread.name} of {size} did not end within {2 * deadline_seconds} s")
    causes = [error for error in failures if not isinstance(error, DeadlineError)] or failures
    if causes:
        raise causes[0]
    return results
