"""When which process has committed which step: a file to which every process of a job appends, and one reads.

An entry is four integers of 8 bytes, and is appended at once, so that it costs a step some microseconds and no two are
mixed up. Times are of the clock that all processes of a machine share.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import NamedTuple

_ENTRY = struct.Struct("<4q")


class StepNote(NamedTuple):
    """`step`: how many steps this process' job has committed. `at_seconds`: by `time.monotonic`."""

    rank: int
    pid: int
    step: int
    at_seconds: float


class StepWriter:
    """Appends for one rank."""

    def __init__(self, path: Path, rank: int) -> None:
        self._rank, self._pid = rank, os.getpid()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def note(self, step: int) -> None:
        """`step` steps are committed now."""
        os.write(self._file, _ENTRY.pack(self._rank, self._pid, step, time.monotonic_ns()))


class StepReader:
    """Follows a file, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self.notes: list[StepNote] = []

    def read(self) -> None:
        """Take in what has been appended since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        whole = len(data) - len(data) % _ENTRY.size
        self._offset += whole
        for rank, pid, step, nanoseconds in _ENTRY.iter_unpack(data[:whole]):
            self.notes.append(StepNote(rank, pid, step, nanoseconds * 1e-9))
