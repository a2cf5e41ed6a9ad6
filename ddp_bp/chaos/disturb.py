"""What is done to processes: killed, stopped, and woken up again; only those of the job that is to be disturbed."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from ddp_bp.chaos.traces import Traces

_POLL_SECONDS = 0.02


class Disturber:
    """Sends signals to processes of one job, and knows which of them are stopped."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces
        self._stopped: dict[int, float | None] = {}

    def kill(self, pids: list[int]) -> list[int]:
        """SIGKILL, to all at once; those that there were."""
        return [pid for pid in pids if self._send(pid, signal.SIGKILL)]

    def stop(self, pid: int, until: float | None) -> bool:
        """SIGSTOP, until the monotonic clock shows that time, or for good. Whether there was such a process."""
        if not self._send(pid, signal.SIGSTOP):
            return False
        self._stopped[pid] = until
        return True

    def wake(self, now: float) -> None:
        """SIGCONT to those whose time has come; who has ended meanwhile is forgotten."""
        for pid, until in list(self._stopped.items()):
            if not self._traces.owns(pid):
                del self._stopped[pid]
            elif until is not None and now >= until:
                self._send(pid, signal.SIGCONT)
                del self._stopped[pid]

    def is_stopped(self, pid: int) -> bool:
        return pid in self._stopped

    @property
    def some_are_stopped_for_good(self) -> bool:
        """Whether there is a process that somebody else must end."""
        return any(until is None for until in self._stopped.values())

    def wait_until_gone(self, deadline_seconds: float) -> list[int]:
        """Wait for the end of all processes of the job; those that are left at the deadline."""
        deadline = time.monotonic() + deadline_seconds
        while (left := self._traces.processes()) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return left

    def end_all(self, deadline_seconds: float = 5.0) -> None:
        """Kill everything that is left of the job."""
        deadline = time.monotonic() + deadline_seconds
        while (left := self._traces.processes()) and time.monotonic() < deadline:
            self.kill(left)
            time.sleep(_POLL_SECONDS)

    def _send(self, pid: int, number: signal.Signals) -> bool:
        try:
            # From now on the number means this process, or none.
            descriptor = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            if not self._traces.owns(pid):
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        return True
