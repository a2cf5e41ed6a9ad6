"""Which ranks something is wrong with, told from what they say of themselves: a pure view of the roster.

A rank is *silent* if nothing comes from it, not even the heartbeats of its own thread: its process is stopped, its host
is dark, or the way to it is cut. It is *stuck* if it says that it is there, makes no progress, and others wait for it;
a rank that is long at its own work is not, as long as no other one waits, or as any other one makes progress. If all
wait for each other, and none is silent, that is a *deadlock*. Knows not what is done about any of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from ddp_bp.coordinator.roster import Member
from ddp_bp.wire.phases import WAITING, WORKING

Reason = Literal["silent", "stuck", "deadlock"]
REASONS: Final[tuple[Reason, ...]] = ("silent", "stuck", "deadlock")

STEPS_BEFORE_STUCK: Final = 3.0
"""A rank is not stuck before others have waited for it for so many mean steps: ranks may have unequal work."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """`rank` is the number at the start. `seconds`: for how long it has been so. `all_wait`: whether all ranks that are
    heard of wait for others, or nobody ever waits for it; where none is heard of, whether this one holds up the job
    although others have ended."""

    rank: int
    member: Member
    reason: Reason
    seconds: float
    all_wait: bool


def suspicions(
    ranks: Iterable[tuple[int, Member]],
    spares: Collection[int],
    now: float,
    here_since: float,
    suspect_seconds: float,
    step_seconds: float,
) -> list[Suspicion]:
    """What is suspected, of each rank at most one thing.

    Args:
        spares: those that wait to take the place of one that dies; they can only be silent.
        here_since: since when the coordinator itself has been there without a break; what it did not hear while it was
            stopped, nobody has failed to say.
        step_seconds: how long a step takes in the mean; 0: not known.
    """
    present = [(rank, member) for rank, member in ranks if not member.left]
    heard = {rank: now - max(member.heard_at, here_since) for rank, member in present}
    silent = [(rank, member) for rank, member in present if heard[rank] >= suspect_seconds]
    awake = [(rank, member) for rank, member in present if heard[rank] < suspect_seconds and rank not in spares]
    waiting = [rank for rank, member in awake if _phase(member) == WAITING]
    all_wait = bool(awake) and len(waiting) == len(awake)
    # A process that ends closes its connection; one that is stopped, or cut off, seems to have it still. And who lives
    # comes to a coordinator that takes the place of another one, unless it is stopped.
    have_ended = not awake and any(not member.connected for rank, member in silent if rank not in spares)
    found = [
        Suspicion(
            rank,
            member,
            "silent",
            heard[rank],
            # And nobody waits for a spare before it is needed, and then it must be there.
            all_wait or rank in spares or (have_ended and (member.connected or not member.has_joined)),
        )
        for rank, member in silent
    ]
    if not waiting or any(_phase(member) not in (WAITING, *WORKING) for _, member in awake):
        return found
    seconds = min(idle_seconds(member, now, here_since) for _, member in awake)
    if seconds < max(suspect_seconds, STEPS_BEFORE_STUCK * step_seconds):
        return found
    if not all_wait:
        # Also beside a silent one: those that are left may wait for this one to go on without the dead.
        found += [
            Suspicion(rank, member, "stuck", seconds, all_wait) for rank, member in awake if _phase(member) != WAITING
        ]
    elif not silent:
        found += [Suspicion(rank, member, "deadlock", seconds, all_wait) for rank, member in awake]
    return found


def _phase(member: Member) -> str:
    return "" if member.position is None else member.position.phase


def idle_seconds(member: Member, now: float, here_since: float) -> float:
    """For how long a rank that has said what it is doing has made no progress."""
    assert member.position is not None
    return member.position.seconds + now - max(member.position_at, here_since)
