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

# Among the fields of /proc/PID/stat after the name, of which the state is the first.
_NUM_THREADS = 17


class RankProcesses:
    """Follows the ranks of one start of a job."""

    def __init__(self, launcher_pid: int, num_ranks: int) -> None:
        """`num_ranks`: how many the launcher starts as children of its own; 0: that is not known."""
        self._launcher_pid, self._num_ranks = launcher_pid, num_ranks
        # Those seen so far; a rank may call itself something else later.
        self._ranks: set[int] = set()
        self._now, self._fewer_at, self._none_at = 0.0, math.inf, math.inf

    def look(self, now: float) -> None:
        """To be called now and then, from the start on."""
        children = _children(self._launcher_pid) if self._num_ranks else set()
        self._ranks |= {pid for pid in children - self._ranks if _is_of_this_interpreter(pid)}
        num_left = sum(not _has_ended(pid) for pid in children & self._ranks)
        self._now = now
        # None: perhaps a launcher that is a script, whose child is another one.
        self._fewer_at = min(self._fewer_at, now) if 0 < num_left < self._num_ranks else math.inf
        all_came = 0 < self._num_ranks <= len(self._ranks)
        self._none_at = min(self._none_at, now) if all_came and not num_left else math.inf

    @property
    def one_is_missing(self) -> bool:
        """Whether one has ended, and nothing has come of it. Only says something until ranks have joined."""
        return self._now - self._fewer_at > START_DEATH_SECONDS

    @property
    def all_have_ended(self) -> bool:
        """Whether all were there, and none has been for a while."""
        return self._now - self._none_at > END_SECONDS


def _children(pid: int) -> set[int]:
    """The processes that a process has started; nothing if that cannot be told."""
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        # A thread that has ended meanwhile.
        with contextlib.suppress(OSError):
            found |= {int(child) for child in path.read_text(encoding="ascii").split()}
    return found


def _is_of_this_interpreter(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] == os.fsencode(sys.executable)
    except OSError:
        return False


def _has_ended(pid: int) -> bool:
    """Whether it only waits for its parent to hear of its end: one that still gives back its memory has not ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return True
    state, num_threads = fields[0], int(fields[_NUM_THREADS])
    return state in (b"Z", b"X") and num_threads <= 1
