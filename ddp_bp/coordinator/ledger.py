"""The ledger file: lines that say which samples each step used, appended and flushed.

It keeps lines in the order of their steps and nothing else of what they say; the hash chain through them is made by
whoever wrote them. Only one process can hold the ledger of a run, which also keeps two jobs out of one run directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ddp_bp.coordinator.files import cut_torn_line
from ddp_bp.errors import InputError, WireError


class _Line(msgspec.Struct):
    step: int


class LedgerFile:
    """A file of JSON lines, each with an integer "step" that never falls."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file and cuts off a line that a crash left unfinished.

        Raises InputError when another process holds it, or its last line is no ledger line, and OSError.
        """
        self._path = path
        self._pending: deque[bytes] = deque()
        self._gaps: list[tuple[int, int]] = []
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"run directory {path.parent} is in use by another job that is still running; wait for it, "
                    "stop it, or choose another run directory"
                ) from None
            self._size = cut_torn_line(self._descriptor)
            self.last_step = self._read_last_step()
        except BaseException:
            os.close(self._descriptor)
            raise

    def append(self, lines: Sequence[str]) -> None:
        """Appends lines; on return they, and all that failed before, are durable.

        Where the first line's step is already in the file, it is cut before that step: a resume, or lines sent twice.
        Raises WireError for lines that do not belong in a ledger, which are forgotten, and OSError when the disk
        refuses; those lines are kept and come first at the next call, which may bring none of its own.
        """
        steps = [self._step_of(line) for line in lines]
        if steps != sorted(steps):
            raise WireError(f"ledger lines of steps {steps[0]} to {steps[-1]}: expected steps that never fall")
        if lines:
            self._pending.append("".join(f"{line}\n" for line in lines).encode())
        while self._pending:
            self._write(self._pending[0])
            self._pending.popleft()

    def take_gaps(self) -> tuple[tuple[int, int], ...]:
        """Runs of steps, as [first, last], that were left without lines by what was appended since the last call."""
        gaps = tuple(self._gaps)
        self._gaps.clear()
        return gaps

    def close(self) -> None:
        """Gives up the file, and with it the hold on the run directory."""
        os.close(self._descriptor)

    def _write(self, block: bytes) -> None:
        first_step = self._decode(block[: block.index(b"\n")])
        if self.last_step is not None and first_step <= self.last_step:
            self._cut_before(first_step)
        try:
            written = 0
            while written < len(block):
                written += os.pwrite(self._descriptor, block[written:], self._size + written)
            os.fsync(self._descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        if self.last_step is not None and first_step > self.last_step + 1:
            self._gaps.append((self.last_step + 1, first_step - 1))
        self._size += len(block)
        self.last_step = self._decode(block[block.rfind(b"\n", 0, -1) + 1 : -1])

    def _cut_before(self, step: int) -> None:
        offset, last_step = 0, None
        with self._path.open("rb") as file:
            for line in file:
                if (found := self._decode(line)) >= step:
                    break
                offset, last_step = offset + len(line), found
        os.ftruncate(self._descriptor, offset)
        self._size, self.last_step = offset, last_step

    def _read_last_step(self) -> int | None:
        if self._size == 0:
            return None
        begin = max(0, self._size - 65536)
        while True:
            tail = os.pread(self._descriptor, self._size - begin, begin)
            before = tail.rfind(b"\n", 0, -1)
            if before >= 0 or begin == 0:
                return self._decode(tail[before + 1 : -1])
            begin = max(0, begin - 65536)

    def _decode(self, line: bytes) -> int:
        try:
            return msgspec.json.decode(line, type=_Line).step
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise InputError(
                f"{self._path} holds a line that is not of a ledger ({error}): {line[:80]!r}; move the file away"
            ) from error

    @staticmethod
    def _step_of(line: str) -> int:
        try:
            if "\n" in line:
                raise ValueError("it contains a line end")
            return msgspec.json.decode(line, type=_Line).step
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise WireError(
                f"ledger line {line[:80]!r}: expected a JSON object with an integer step: {error}"
            ) from error
