"""How many steps a running job has committed, read out of a rank's memory by another process of the same user.

Ranks note how far they are in memory that those of a node share (`parallel.journal`). Whoever may look into one of them
reads it there: the job is asked nothing and sends nothing, so it is neither slower nor otherwise than without. A look
takes some microseconds, and some hundred more where it also searches for journals that are new. Linux. Knows nothing of
why a job is watched.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from ddp_bp.errors import DistributedError
from ddp_bp.parallel.journal import JOURNAL, NOTE_BYTES, num_committed_steps
from ddp_bp.parallel.nodes import memory_name

_NAME = f"/memfd:{memory_name(JOURNAL)}"


class JournalWatch:
    """The journals that one rank has in its memory: one after each recovery, and those of before for a while.

    Each is known by a number that no other memory has meanwhile, whatever address it lies at.
    """

    def __init__(self, pid: int) -> None:
        """`pid`: the rank's process.

        Raises DistributedError if the kernel does not let this process look into that one.
        """
        self._pid = pid
        # Address and size, in the order in which they were found.
        self._places: dict[int, tuple[int, int]] = {}
        self._committed: dict[int, int] = {}
        self.is_gone = False
        """Whether the process has ended, as of the last search."""
        self._memory = -1
        try:
            self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            raise DistributedError(
                f"process {pid}: expected to read the memory of a rank that this command has started, got {error}; a "
                "kernel with kernel.yama.ptrace_scope above 1 allows that to nobody but root"
            ) from error
        except OSError:
            self.is_gone = True

    def search(self) -> None:
        """Find journals that are new, and forget where those were that are no more."""
        found = {}
        lines = self._maps()
        for line in lines:
            # address-end, flags, offset, device, inode, name
            if _NAME in line:
                fields = line.split(maxsplit=5)
                begin, end = (int(address, 16) for address in fields[0].split("-"))
                found[int(fields[4])] = begin, (end - begin) // NOTE_BYTES * NOTE_BYTES
        self.is_gone = not lines
        known = [number for number in self._places if number in found]
        self._places = {number: found[number] for number in [*known, *found]}

    def look(self) -> None:
        """Read all journals that are known, the newest first.

        So that what an older one says last is not taken for less than a newer one begins with.
        """
        for number, (address, num_bytes) in reversed(self._places.items()):
            try:
                notes = os.pread(self._memory, num_bytes, address)
            except OSError:
                # The rank has let go of it meanwhile.
                continue
            if len(notes) == num_bytes:
                self._committed[number] = max(num_committed_steps(notes), self._committed.get(number, 0))

    @property
    def journals(self) -> frozenset[int]:
        """The numbers of all journals that have been read."""
        return frozenset(self._committed)

    def num_committed(self, journals: Collection[int] | None = None) -> int:
        """The most steps that any of these journals has said are committed, of all by default; 0 if none has."""
        numbers = self._committed if journals is None else journals
        return max((self._committed[number] for number in numbers), default=0)

    def close(self) -> None:
        """Look no more."""
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    def _maps(self) -> list[str]:
        try:
            return Path(f"/proc/{self._pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
