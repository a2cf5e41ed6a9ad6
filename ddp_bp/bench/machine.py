"""What a benchmark must know of the machine and of its own process. Linux only; everything is read from the kernel."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np

from ddp_bp.bench.race import Seconds, race
from ddp_bp.parallel.communicator import Communicator

# Where the kernel does not say: more than most processors have.
_UNKNOWN_CACHE_BYTES = 64 * 2**20
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def last_level_cache_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """The size of the largest cache of the first core, as the kernel has it, or 64 MiB where it has none."""
    sizes = []
    for file in folder.glob("index*/size"):
        text = file.read_text().strip()
        number, unit = text.rstrip("KMG"), text[-1:]
        if number.isdigit():
            sizes.append(int(number) * _UNITS.get(unit, 1))
    return max(sizes, default=_UNKNOWN_CACHE_BYTES)


def proportional_set_bytes(smaps: Path = Path("/proc/self/smaps_rollup")) -> int:
    """The memory of this process in which a page that several processes share counts for each of them in part (PSS).

    So the sum over processes counts every page once.
    """
    fields = dict(line.split(":", 1) for line in smaps.read_text().splitlines()[1:])
    return int(fields["Pss"].split()[0]) * 1024


def minor_faults() -> int:
    """How often this process has met a page that the kernel first had to give it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class Copying:
    """All ranks copying at once, each from memory of its own to memory of its own; on each node more than the cache."""

    def __init__(self, communicator: Communicator, ranks_per_node: int, cache_bytes: int) -> None:
        """`ranks_per_node`: how many there are at least."""
        self._communicator = communicator
        num_bytes = cache_bytes // ranks_per_node + 2**20
        # Written to, so that the pages are there: all pages that nobody has written to are one and the same.
        self._source, self._target = np.full(num_bytes, 1, np.uint8), np.full(num_bytes, 2, np.uint8)
        self.num_bytes = 2 * num_bytes * communicator.size
        """What one call moves: bytes read and bytes written, by all ranks together."""

    def copy(self, _: int) -> None:
        """Copy once; leaves nothing else in the cache."""
        np.copyto(self._target, self._source)

    def seconds(self, num_repeats: int) -> Seconds:
        """Of each of so many copies, those of the rank that took longest. Collective."""
        return race(self._communicator, {"copy": self.copy}, num_repeats, num_warm_up=1)["copy"]
