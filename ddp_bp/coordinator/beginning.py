"""Whether a job begins: all its ranks must come, and one must train, within a time.

Who has not come yet cannot be watched as others are, and those that have wait for it in MPI, which has no deadlines.
Knows not what becomes of a job that does not begin.
"""

from __future__ import annotations

from ddp_bp.coordinator.config import CoordinatorConfig
from ddp_bp.coordinator.roster import Member, Roster


class Beginning:
    """Follows a job until it trains."""

    def __init__(self, config: CoordinatorConfig, roster: Roster) -> None:
        self._config, self._roster = config, roster
        self._came: set[int] = set()
        self._first_at: float | None = None
        self._is_over = False

    def problem(self, now: float, here_since: float) -> str | None:
        """Why the job is given up; None while it may still begin, or once it has.

        `here_since`: since when the coordinator itself has been there without a break.
        """
        members = list(self._roster)
        self._is_over = self._is_over or any(_trains(member) for _, member in members)
        if self._is_over:
            return None
        self._came |= {rank for rank, _ in members}
        if members and self._first_at is None:
            self._first_at = now
        # All ranks have loaded their data before the first one comes, so that the others must be near.
        silence_seconds, missing = self._config.silence_seconds, set(self._roster.expected) - self._came
        if missing and self._first_at is not None and 0 < silence_seconds <= now - max(self._first_at, here_since):
            return (
                f"rank {', '.join(map(str, sorted(missing)))} has not joined within fault.silence_seconds = "
                f"{silence_seconds:g} of the first one; is its process stopped, or its host gone?"
            )
        # Whoever starts ranks elsewhere does so when it likes.
        began_at = here_since if self._config.parent_fd is not None else self._first_at
        start_seconds = self._config.start_seconds
        if began_at is None or not 0 < start_seconds <= now - max(began_at, here_since):
            return None
        if not members:
            return (
                f"no rank has joined within fault.start_seconds = {start_seconds:g}; they do so when all of them have "
                "loaded the data: is one of them stopped, or a host gone?"
            )
        doing = "; ".join(f"rank {rank}: {_doing(member)}" for rank, member in members)
        return f"no rank has begun to train within fault.start_seconds = {start_seconds:g} ({doing})"

    @property
    def missing(self) -> list[int]:
        """The ranks that have not come yet."""
        return [rank for rank in self._roster.expected if self._roster.member(rank) is None]


def _trains(member: Member) -> bool:
    return member.report_at is not None or (member.position is not None and member.position.step > 0)


def _doing(member: Member) -> str:
    return "setup" if member.position is None else member.position.phase
