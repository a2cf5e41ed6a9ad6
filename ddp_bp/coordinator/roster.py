"""Which ranks are here, through which connection, when each was last heard of, and what it is called by now.

A rank is known by its number at the start of the job. Where some have died and the others go on, those are numbered
anew (`Membership`); what they send then has the new number. Knows who may join; neither what training is about nor
what is done with a rank that is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ddp_bp.wire.messages import PROTOCOL_VERSION, Hello, Membership, Position

ALIVE_SECONDS: Final = 5.0
"""A rank heard of this recently is taken to be alive when another process claims its place."""


@dataclass(slots=True)
class Member:
    """A rank, as far as it is known. Times are those of the state machine's clock, in seconds.

    identity    names its connection; empty: only a coordinator before this one has met it
    connected   its connection stands, as far as is known, and it has not said goodbye
    left        it said goodbye
    rank        what it calls itself since the membership `epoch`
    position    what it said that it was doing, at `position_at`
    step_at     when its last report with a committed step came
    """

    hello: Hello
    identity: bytes
    heard_at: float
    rank: int
    epoch: int = 0
    connected: bool = True
    left: bool = False
    step: int = 0
    phase: str = "setup"
    position: Position | None = None
    position_at: float = 0.0
    report_at: float | None = None
    step_at: float | None = None

    @property
    def has_joined(self) -> bool:
        return bool(self.identity)

    def heard(self, now: float) -> None:
        """Something came from it, so it is there."""
        self.heard_at = now
        self.connected = not self.left

    def said_goodbye(self) -> None:
        self.left, self.connected = True, False


class Roster:
    """The ranks of one job.

    epoch            of the membership, as the ranks count it; 0 until some have died and the others have gone on
    lost             those that have died, as they were numbered at the start
    spares           likewise, those that live and wait to take the place of one that dies
    num_recoveries   how often the ranks that were left have gone on
    """

    def __init__(self, run_id: str, world_size: int, num_spares: int = 0) -> None:
        """`num_spares`: how many ranks there are besides, the last ones."""
        self._started_size = world_size + num_spares
        self.epoch = 0
        self.lost: tuple[int, ...] = ()
        self.spares = tuple(range(world_size, self._started_size))
        self.num_recoveries = 0
        self._run_id = run_id
        self._members: dict[int, Member] = {}
        self._ranks: dict[bytes, int] = {}

    def refusal(self, hello: Hello, identity: bytes, now: float) -> str | None:
        """Why this worker or tool is not let in; None if it is welcome."""
        if hello.protocol_version != PROTOCOL_VERSION:
            return (
                f"protocol version {hello.protocol_version} (ddp_bp {hello.package_version}), expected "
                f"{PROTOCOL_VERSION}; install the same ddp_bp everywhere"
            )
        if hello.run_id != self._run_id:
            return f"this coordinator serves run {self._run_id!r}, not {hello.run_id!r}; check the address"
        if hello.role == "tool":
            return None
        if hello.world_size != self._started_size:
            return (
                f"rank {hello.rank} counts {hello.world_size} ranks, expected {self._started_size}; start the job with "
                "as many ranks as the coordinator was told"
            )
        if not 0 <= hello.rank < self._started_size:
            return f"rank {hello.rank}: expected 0 to {self._started_size - 1}"
        if hello.rank in self.lost:
            return f"rank {hello.rank} is taken to be dead: the others have gone on without it; end this process"
        for rank, member in self._members.items():
            if rank != hello.rank and member.hello.shards != hello.shards:
                return (
                    f"rank {hello.rank} counts {hello.shards} shards, rank {rank} counts {member.hello.shards}; all "
                    "ranks must use the same recipe"
                )
        present = self._members.get(hello.rank)
        if (
            present is not None
            and present.connected
            and present.identity != identity
            and not self.is_back(hello)
            and now - present.heard_at < ALIVE_SECONDS
        ):
            return (
                f"rank {hello.rank} is already here, as process {present.hello.pid} on {present.hello.hostname}; "
                "was the job started twice, or did mpirun start separate copies?"
            )
        return None

    def is_back(self, hello: Hello) -> bool:
        """Whether this very process held its rank before: its connection was lost, or seemed to be."""
        before = self._members.get(hello.rank)
        return before is not None and _is_same_process(before.hello, hello)

    def join(self, hello: Hello, identity: bytes, now: float) -> Member:
        """Takes in a worker that was not refused; in place of the one that held its rank before, if any."""
        before = self._members.get(hello.rank)
        if before is not None:
            self._ranks.pop(before.identity, None)
        if (other := self._ranks.pop(identity, None)) is not None and other != hello.rank:
            del self._members[other]
        member = self._members[hello.rank] = Member(hello, identity, heard_at=now, rank=hello.rank)
        if before is not None and _is_same_process(before.hello, hello):
            member.rank, member.epoch = before.rank, before.epoch
        self._ranks[identity] = hello.rank
        return member

    def recall(self, hello: Hello, rank: int, epoch: int, left: bool, now: float) -> None:
        """Expect a rank that a coordinator before this one has met; it may be stopped, and never come back."""
        self._members[hello.rank] = Member(hello, b"", now, rank, epoch, connected=False, left=left)

    def announce(self, member: Member, message: Membership) -> bool | None:
        """A rank says in which membership it goes on. True: the first one to say so, and the lost ones are forgotten;
        False: another one of it, or of one that is over; None, and no change: it does not fit what others have said.
        """
        lost, spares = tuple(sorted(message.lost)), tuple(sorted(message.spares))
        absent = [*lost, *spares]
        fits = (
            message.epoch >= member.epoch
            and message.rank < message.world_size == self._started_size - len(absent)
            and len(set(absent)) == len(absent)
            and all(rank < self._started_size for rank in absent)
            and member.hello.rank not in absent
        )
        if message.epoch == self.epoch:
            namesake = self.current(message.rank)
            fits = fits and (lost, spares) == (self.lost, self.spares) and namesake in (None, member)
        elif message.epoch > self.epoch:
            fits = fits and set(lost) > set(self.lost) and set(spares) <= set(self.spares)
        if not fits:
            return None
        is_new = message.epoch > self.epoch
        if is_new:
            self.epoch, self.lost, self.spares = message.epoch, lost, spares
            self.num_recoveries += 1
            for rank in lost:
                self._forget(rank)
        member.rank, member.epoch = message.rank, message.epoch
        return is_new

    def forget_spare(self, rank: int) -> None:
        """A spare is gone, or seems to be; no rank will say so, since none goes on without it. It may come back."""
        if rank in self.spares:
            self._forget(rank)

    def _forget(self, rank: int) -> None:
        if (gone := self._members.pop(rank, None)) is not None:
            self._ranks.pop(gone.identity, None)

    def find(self, identity: bytes) -> Member | None:
        """The rank behind a connection; None for strangers."""
        rank = self._ranks.get(identity)
        return None if rank is None else self._members[rank]

    def lose(self, identity: bytes) -> Member | None:
        """A connection is gone. The rank behind it, if it was here and has not said goodbye."""
        member = self.find(identity)
        if member is None or not member.connected:
            return None
        member.connected = False
        return member

    def __iter__(self) -> Iterator[tuple[int, Member]]:
        return iter(sorted(self._members.items()))

    def member(self, rank: int) -> Member | None:
        """A rank by its number at the start, if it joined at some time, connected or not."""
        return self._members.get(rank)

    def current(self, rank: int) -> Member | None:
        """A rank by its number in the newest membership; None if it has not said yet that it goes on in that."""
        here = (member for member in self._members.values() if member.epoch == self.epoch)
        return next((member for member in here if member.rank == rank), None)

    @property
    def world_size(self) -> int:
        """How many ranks there are in the newest membership."""
        return self._started_size - len(self.lost) - len(self.spares)

    @property
    def expected(self) -> list[int]:
        """All that have been started and are not lost, spares among them."""
        return [rank for rank in range(self._started_size) if rank not in self.lost]

    @property
    def unannounced(self) -> list[int]:
        """Ranks that are here, and have not said yet that they go on in the newest membership."""
        return [rank for rank, member in self.working() if member.epoch != self.epoch]

    def working(self) -> list[tuple[int, Member]]:
        """The ranks that have joined and are no spares."""
        return [(rank, member) for rank, member in self if rank not in self.spares]

    def connected(self) -> list[bytes]:
        """Connections of the ranks that are here, by rank."""
        return [member.identity for _, member in self if member.connected]

    @property
    def num_joined(self) -> int:
        """How many ranks have joined at some time."""
        return sum(member.has_joined for member in self._members.values())

    @property
    def all_joined(self) -> bool:
        """Whether nobody is missing that has not met this coordinator or one before it; a spare will not be missed."""
        return len(self.working()) == self.world_size

    @property
    def all_left(self) -> bool:
        """Every rank was here and said goodbye."""
        return self.all_joined and all(member.left for member in self._members.values())

    @property
    def deserted_at(self) -> float | None:
        """Since when nobody has been here, if some have said goodbye; the others may be dead. None: it is not so."""
        members = [member for _, member in self]
        if any(member.connected for member in members) or not any(member.left for member in members):
            return None
        return max(member.heard_at for member in members)

    @property
    def heard_at(self) -> float | None:
        """When any rank was last heard of."""
        return max((member.heard_at for member in self._members.values() if member.has_joined), default=None)

    @property
    def shards(self) -> int | None:
        return next((member.hello.shards for member in self._members.values()), None)


def _is_same_process(one: Hello, other: Hello) -> bool:
    if one.process and other.process:
        return one.process == other.process
    return (one.pid, one.hostname) == (other.pid, other.hostname)
