"""When a running job is to stop with a checkpoint and go on with another number of ranks, or not at all.

Decides from what /api/status says: somebody has asked for another number, ranks have died in whose place others may be
started, or too few are left. Starts and stops nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from ddp_bp.recipes.fault import FaultSection
from ddp_bp.wire.messages import StopCause

RETRY_SECONDS = 30.0


@dataclass(frozen=True)
class Wish:
    """To stop for `cause`, and to go on then, with `world_size` ranks if that is not None; or to end, for "too_few".
    `why`: for people."""

    cause: StopCause
    why: str
    world_size: int | None = None


class Resizing:
    """What is wished over all starts of a job, within the recipe's budget for ranks in the place of dead ones."""

    def __init__(self, fault: FaultSection) -> None:
        self._fault = fault
        self._respawned_at: deque[float] = deque()
        self._last_counts = False
        self._not_before = float("-inf")

    def take_back(self, failed_at: float | None) -> None:
        """The job was not stopped for the last wish, which does not count. `failed_at`: when that was, if because it
        could not save a checkpoint; then it is tried again after a while only."""
        if self._last_counts:
            self._respawned_at.pop()
            self._last_counts = False
        if failed_at is not None:
            self._not_before = failed_at + RETRY_SECONDS

    def wish(self, status: dict[str, Any], now: float) -> Wish | None:
        """What is to become of the job. To be followed if there is one: it is counted.

        Args:
            status: what /api/status says.
            now: seconds of a monotonic clock.
        """
        # Only when all that are left have gone on is there somebody to stop.
        if status["state"] != "training" or not status["ready"] or now < self._not_before:
            return None
        self._last_counts = False
        size, lost, wanted = status["world_size"], status["lost_ranks"], status["wanted_world_size"]
        if wanted is not None and wanted != size:
            return Wish("resize", f"{ranks_text(wanted)} asked for", wanted)
        if not lost or size in (wanted, status["full_world_size"]):
            return None
        who = f"rank {', '.join(map(str, lost))} has died"
        if self._may_respawn(now):
            self._respawned_at.append(now)
            self._last_counts = True
            return Wish("respawn", f"{who}; starting others in the place of the dead")
        if size < self._fault.min_workers:
            least = self._fault.min_workers
            return Wish("too_few", f"{who}; {ranks_text(size)} left, fewer than fault.min_workers = {least}")
        return None

    def _may_respawn(self, now: float) -> bool:
        while self._respawned_at and now - self._respawned_at[0] >= self._fault.respawn_seconds:
            self._respawned_at.popleft()
        return self._fault.respawn and len(self._respawned_at) < self._fault.respawn_limit


def ranks_text(number: int) -> str:
    """For people."""
    return f"{number} rank{'s' if number > 1 else ''}"
