"""What of a job there is on this machine, found by a mark in the environment of its processes, and what it leaves.

Does nothing to processes, and knows not what they do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

_SHARED_MEMORY = "/dev/shm/"
# Of MPICH, which takes the names of its memory away only when its processes end by themselves.
_KNOWN_TO_STAY = "mpich_shm_"


class Traces:
    """Follows a job and what it uses. To be asked to `look` now and then while it runs."""

    def __init__(self, is_of_job: Callable[[bytes], bool], folder_of: Callable[[bytes], Path | None]) -> None:
        """Both are given the variables that a process was started with, as /proc shows them: whether it is of the job,
        and which temporary folder it has."""
        self._is_of_job, self._folder_of = is_of_job, folder_of
        self._folders: set[Path] = set()
        self._segments: set[Path] = set()

    def owns(self, pid: int) -> bool:
        """Whether that process lives and is of the job."""
        return self._is_of_job(_variables(pid))

    def processes(self) -> list[int]:
        """All processes of the job, but for those that have ended and are only not waited for."""
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [pid for pid in pids if pid != os.getpid() and self.owns(pid)]

    def look(self) -> None:
        """Take note of the folders and the shared memory that the job uses at this moment."""
        for pid in self.processes():
            folder = self._folder_of(_variables(pid))
            if folder is not None:
                self._folders.add(folder)
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
                names = (line.split(maxsplit=5)[5] for line in lines if _SHARED_MEMORY in line)
                paths = {Path(name) for name in names if not name.endswith(" (deleted)")}
                self._segments |= {path for path in paths if not path.name.startswith(_KNOWN_TO_STAY)}

    def left_behind(self) -> list[Path]:
        """Which of the folders and files that were seen are still there."""
        return sorted(path for path in self._folders | self._segments if path.exists())

    def remove(self) -> None:
        """Remove them, after the end of a job that could not do so itself."""
        for path in self.left_behind():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _variables(pid: int) -> bytes:
    """What a process was started with; nothing if it has ended, or is not ours to look at."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def describe_process(pid: int) -> str:
    """A process for people: its number and what it was started as."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return f"process {pid}"
    line = b" ".join(words).decode(errors="replace").strip()
    return f"process {pid} ({line if len(line) <= 100 else line[:97] + '...'})"
