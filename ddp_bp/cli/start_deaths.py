"""Whether a rank of this machine has died before all have found each other, as far as its launcher's children tell.

MPI, told to let the others go on when one dies, lets them wait for it for good where its own start is not over yet, and
the launcher says nothing either. Knows not what is done about it.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from pathlib import Path

START_DEATH_SECONDS = 5.0
"""How long a launcher may take to end by itself if ranks end while they start, for instance after an error."""


class StartDeaths:
    """Follows one start of a job."""

    def __init__(self, launcher_pid: int, num_ranks: int) -> None:
        """`num_ranks`: how many the launcher starts as children of its own; 0: that is not known."""
        self._launcher_pid, self._num_ranks = launcher_pid, num_ranks
        self._fewer_at = math.inf

    def seen(self, now: float) -> bool:
        """Whether one has died, and nothing has come of it. To be asked now and then until ranks have joined."""
        # None: a launcher that is a script, whose child is another one.
        are_fewer = 0 < _num_children(self._launcher_pid) < self._num_ranks
        self._fewer_at = min(self._fewer_at, now) if are_fewer else math.inf
        return now - self._fewer_at > START_DEATH_SECONDS


def _num_children(pid: int) -> int:
    """How many processes of this interpreter a process has started that have not ended; 0 if that cannot be told."""
    number, interpreter = 0, os.fsencode(sys.executable)
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        # A thread, or a child, that has ended meanwhile.
        with contextlib.suppress(OSError):
            for child in path.read_text(encoding="ascii").split():
                number += Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0] == interpreter
    return number
