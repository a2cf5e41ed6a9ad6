"""A process that is started to be disturbed: waited for with deadlines, and ended whatever happens.

Knows not what it does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from ddp_bp.errors import DeadlineError, DistributedError

Found = TypeVar("Found")

_END_SECONDS = 20.0
_NUM_LAST_LINES = 8


class Begin(Protocol):
    """Starts a command in a session of its own, with its output into a file, so that it ends when this process does."""

    def __call__(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]: ...


class WatchedProcess:
    """One start of a command; its output is in `log`."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path, check: Callable[[], None]) -> None:
        """`name`: for messages. `check`: called again and again; raises when nobody wants to wait any longer."""
        self._name, self._process, self._log, self._check = name, process, log, check

    def wait_for(
        self, condition: Callable[[], Found | None], what: str, timeout_seconds: float, poll_seconds: float
    ) -> Found:
        """The first thing that `condition` gives; it is called every `poll_seconds`.

        Raises:
            DistributedError: the process has ended before.
            DeadlineError: nothing has come in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._check()
            found = condition()
            if found is not None:
                return found
            if self._process.poll() is not None:
                raise DistributedError(
                    f"{self._name} has ended with exit code {self._process.returncode}, while {what} was waited for; "
                    f"it said last: {self._last_words()}"
                )
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"{self._name}: waited {timeout_seconds:g} s for {what}; it said last: {self._last_words()}"
                )
            time.sleep(poll_seconds)

    def output(self) -> str:
        """What it has said so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def end(self) -> None:
        """End it at once: by two different signals, which count as two, then by force."""
        for number in (signal.SIGINT, signal.SIGTERM):
            # Its number may be another process's once it has ended, which this looks at first.
            self._process.send_signal(number)
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(_END_SECONDS)

    def _last_words(self) -> str:
        return " | ".join(self.output().strip().splitlines()[-_NUM_LAST_LINES:]) or "nothing"
