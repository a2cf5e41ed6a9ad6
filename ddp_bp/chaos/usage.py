"""Memory and file descriptors of ranks, and whether they grow with every disturbance that a rank survives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

MOST_GROWTH = 1.5
MOST_MORE_BYTES = 100 * 10**6
MOST_MORE_DESCRIPTORS = 32
WARM_SECONDS = 5.0
"""How long a process trains before what it holds is compared: much is allocated when it is first needed."""
_FEWEST_LOOKS = 3
"""How often it must have been looked at since the disturbance before. While ranks recover or send a checkpoint, they
hold more for a moment, so that what they hold in the middle counts."""


@dataclass(frozen=True)
class Usage:
    """What a process holds: resident memory, that shared with others included, and open files."""

    resident_bytes: int
    num_descriptors: int


@dataclass
class RankUsage:
    """A rank's process: what it held when it was first seen training, and last."""

    rank: int
    first: Usage
    last: Usage

    def problems(self) -> list[str]:
        """What has grown beyond any use, in words."""
        found = []
        limit_bytes = self.first.resident_bytes * MOST_GROWTH + MOST_MORE_BYTES
        if self.last.resident_bytes > limit_bytes:
            began, most, got = (
                number / 1e6 for number in (self.first.resident_bytes, limit_bytes, self.last.resident_bytes)
            )
            found.append(
                f"rank {self.rank}: expected at most {most:.0f} MB of resident memory after beginning with "
                f"{began:.0f} MB, got {got:.0f} MB"
            )
        limit = self.first.num_descriptors + MOST_MORE_DESCRIPTORS
        if self.last.num_descriptors > limit:
            found.append(
                f"rank {self.rank}: expected at most {limit} open files after beginning with "
                f"{self.first.num_descriptors}, got {self.last.num_descriptors}"
            )
        return found


@dataclass
class Growth:
    """The most by which the process of a rank has grown from a disturbance that it survived to a later one, among as
    many ranks. `resident`: a share of what it was; `num_compared`: how often one was compared."""

    resident: float
    num_descriptors: int
    num_compared: int


class UsageWatch:
    """Follows what the ranks of a job hold. To be told whom there is, by rank its process."""

    def __init__(self, usage_of: Callable[[int], Usage | None]) -> None:
        self._usage_of = usage_of
        self._ranks: dict[int, RankUsage] = {}
        self._since: dict[int, float] = {}
        self._before: dict[tuple[int, int], Usage] = {}
        self._looks: dict[int, list[Usage]] = {}
        self.growth: Growth | None = None

    def look(self, left: Mapping[int, int], now: float) -> None:
        """To be called now and then. `now`: seconds of a monotonic clock."""
        # Of processes that have gone there is nothing to say.
        self._ranks = {pid: one for pid, one in self._ranks.items() if pid in left.values()}
        for rank, pid in left.items():
            if (usage := self._usage_of(pid)) is not None:
                self._since.setdefault(pid, now)
                first = self._ranks[pid].first if pid in self._ranks else usage
                self._ranks[pid] = RankUsage(rank, first, usage)
                self._looks.setdefault(pid, []).append(usage)

    def before_disturbance(self, left: Mapping[int, int], now: float) -> None:
        """To be called while all is well, and something is about to happen."""
        looks, self._looks = self._looks, {}
        for pid in left.values():
            is_warm = now - self._since.get(pid, now) >= WARM_SECONDS
            if is_warm and len(seen := looks.get(pid, [])) >= _FEWEST_LOOKS:
                usage = Usage(
                    median_low([look.resident_bytes for look in seen]),
                    median_low([look.num_descriptors for look in seen]),
                )
                # With fewer ranks each holds more.
                before = self._before.setdefault((pid, len(left)), usage)
                if before is not usage:
                    self._compare(before, usage)

    def ranks(self) -> list[RankUsage]:
        """Those that were there when it looked last."""
        return sorted(self._ranks.values(), key=lambda one: one.rank)

    def _compare(self, before: Usage, usage: Usage) -> None:
        resident = usage.resident_bytes / before.resident_bytes - 1.0
        num_descriptors = usage.num_descriptors - before.num_descriptors
        most = self.growth or Growth(resident, num_descriptors, 0)
        self.growth = Growth(
            max(most.resident, resident), max(most.num_descriptors, num_descriptors), most.num_compared + 1
        )


def usage_of(pid: int) -> Usage | None:
    """What a process holds at this moment; None if it has ended, or is not ours to look at."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        num_descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return None
    resident = next((line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")), None)
    return None if resident is None else Usage(1024 * int(resident), num_descriptors)
