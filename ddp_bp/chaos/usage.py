"""Memory and file descriptors of ranks, and whether they grow with every disturbance that a rank survives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MOST_GROWTH = 1.5
MOST_MORE_BYTES = 100 * 10**6
MOST_MORE_DESCRIPTORS = 32


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


def usage_of(pid: int) -> Usage | None:
    """What a process holds at this moment; None if it has ended, or is not ours to look at."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        num_descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return None
    resident = next((line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")), None)
    return None if resident is None else Usage(1024 * int(resident), num_descriptors)
