"""Open MPI's shared memory, so that it leaves no file behind. Knows nothing of communicators.

Each rank makes a file `sm_segment.*`, by default in /dev/shm, which the others map, and which stays there when the
processes are killed. Once all have mapped it, it needs no name any more.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_PREFIX = "sm_segment."


def mapped_segments() -> list[Path]:
    """The files with which the ranks of this node talk to each other, as far as this process has mapped them."""
    names = {line.split(maxsplit=5)[5].strip() for line in _MAPS.read_text().splitlines() if _PREFIX in line}
    paths = (Path(name) for name in sorted(names))
    return [path for path in paths if path.name.startswith(_PREFIX) and not path.name.endswith(" (deleted)")]


def remove_names(segments: list[Path]) -> None:
    """Take the files out of their folder. The memory stays until its last process has ended."""
    for segment in segments:
        # Each rank of the node does the same.
        with contextlib.suppress(OSError):
            segment.unlink()
