"""What the processes of ranks on this machine tell of a job whose launcher says nothing: they are its children.

MPI, told to let the others go on when one dies, lets them wait for it for good where its own start is not over yet. And
mpirun of Open MPI 5.0, if ranks abort while it hears of a death, may end them all and then wait for a lock that it
holds itself. Knows not what is done about it.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from pathlib import Path

START_DEATH_SECONDS = 5.0
"""How long a launcher may take to end by itself if ranks end while they start, for instance after an error."""
END_SECONDS = 2.0
"""How long it may take once all of its ranks have ended."""


class RankProcesses:
    """Follows the ranks of one start of a job."""

    def __init__(self, launcher_pid: int, num_ranks: int) -> None:
        """`num_ranks`: how many the launcher starts as children of its own; 0: that is not known."""
        self._launcher_pid, self._num_ranks = launcher_pid, num_ranks
        self._most = 0
        self._now, self._fewer_at, self._none_at = 0.0, math.inf, math.inf

    def look(self, now: float) -> None:
        """To be called now and then, from the start on."""
        num_left = _num_children(self._launcher_pid) if self._num_ranks else 0
        # Never one: a launcher that is a script, whose child is another one.
        self._now, self._most = now, max(self._most, num_left)
        self._fewer_at = min(self._fewer_at, now) if 0 < num_left < self._num_ranks else math.inf
        self._none_at = min(self._none_at, now) if num_left == 0 < self._most else math.inf

    @property
    def one_is_missing(self) -> bool:
        """Whether one has ended, and nothing has come of it. Only says something until ranks have joined."""
        return self._now - self._fewer_at > START_DEATH_SECONDS

    @property
    def all_have_ended(self) -> bool:
        """Whether there were some, and have been none for a while."""
        return self._now - self._none_at > END_SECONDS


def _num_children(pid: int) -> int:
    """How many processes of this interpreter a process has started that have not ended; 0 if that cannot be told."""
    number, interpreter = 0, os.fsencode(sys.executable)
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        # A thread, or a child, that has ended meanwhile.
        with contextlib.suppress(OSError):
            for child in path.read_text(encoding="ascii").split():
                number += Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0] == interpreter
    return number
