"""A coordinator that is started again, at the same address, whenever it is killed, breaks or does not answer any more.
Knows not what it does."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from ddp_bp.cli.processes import CoordinatorProcess
from ddp_bp.coordinator.client import CoordinatorAddress, read_address
from ddp_bp.errors import DdpError

POLL_SECONDS = 0.2
LINGER_POLL_SECONDS = 0.05
END_SECONDS = 1.0
"""How long a coordinator may take to end once it need not linger any more."""
CRASHED_EXIT_CODE = 70
"""Of a coordinator that was ended by an error which nobody has foreseen, and which need not come again."""
ANSWER_SECONDS = 20.0
"""One that has answered, and then has not for so long, is stopped."""
PAUSE_SECONDS = 5.0
"""Who has not asked for so long was stopped as well."""
MOST_TIMES = 5
WITHIN_SECONDS = 60.0
"""One that is killed more than so often in so short a time will be killed again."""

Begin = Callable[[Sequence[str], bool], CoordinatorProcess]


class KeptCoordinator:
    """The coordinator of one job, whichever process that is by now."""

    def __init__(self, begin: Begin, run_dir: Path, say: Callable[[str], None], overrides: Sequence[str] = ()) -> None:
        """Starts it; raises what `begin` does.

        Args:
            begin: starts a process, given further settings of the recipe, and whether it takes another one's place.
            say: is told when one was killed.
            overrides: settings for the first process.
        """
        self._begin, self._say = begin, say
        self._current = begin(overrides, False)
        self.address: CoordinatorAddress = read_address(run_dir)
        self.num_takeovers = 0
        self._killed_at: deque[float] = deque(maxlen=MOST_TIMES)
        self._has_answered = False
        self._unanswered_since: float | None = None
        self._noted_at = -math.inf
        self._lock = threading.Lock()
        self._released = False
        self._watching: threading.Thread | None = None

    def check(self) -> int | None:
        """To be called a few times a second: its exit code if it has ended and no other one takes its place."""
        with self._lock:
            code = self._current.poll()
            if code is None or (code >= 0 and code != CRASHED_EXIT_CODE) or self._released:
                return code
            now = time.monotonic()
            if len(self._killed_at) == MOST_TIMES and now - self._killed_at[0] < WITHIN_SECONDS:
                return code
            self._killed_at.append(now)
            self._current.release()
            ports = f"coordinator.port={self.address.port}", f"coordinator.http_port={self.address.http_port}"
            try:
                self._current = self._begin(ports, True)
            except DdpError as error:
                self._say(f"the coordinator {how_it_ended(code)}, and could not be started again: {error}")
                self._released = True
                return code
            self.num_takeovers += 1
            self._has_answered, self._unanswered_since = False, None
            self._say(f"the coordinator {how_it_ended(code)}; another process has taken its place, and no rank waited")
            return None

    def note(self, answers: bool, now: float) -> None:
        """To be told each time that it was asked for something, and whether it has answered. One that does not any more
        is killed, but for one on the other side of a shell, whose ports another one could not have. `now`: seconds of a
        monotonic clock."""
        with self._lock:
            if answers or now - self._noted_at > PAUSE_SECONDS:
                self._unanswered_since = None
            self._noted_at, self._has_answered = now, self._has_answered or answers
            if answers or not self._has_answered or self._released or self._current.through_shell:
                return
            if self._unanswered_since is None:
                self._unanswered_since = now
            if now - self._unanswered_since >= ANSWER_SECONDS:
                self._say(f"the coordinator has not answered for {ANSWER_SECONDS:g} s, and is killed")
                self._has_answered, self._unanswered_since = False, None
                self._current.process.kill()

    def watch(self) -> None:
        """Check in a thread, where nobody else has the time for it."""

        def run() -> None:
            while not self._released and self.check() is None:
                time.sleep(POLL_SECONDS)

        self._watching = threading.Thread(target=run, name="coordinator watch", daemon=True)
        self._watching.start()

    def linger(self, most_seconds: float, is_enough: Callable[[], bool]) -> None:
        """After the job, leave it the time to be seen: until it ends by itself, the time is over, or it `is_enough`.
        From now on nobody takes its place."""
        with self._lock:
            self._released = True
        deadline = time.monotonic() + most_seconds
        while self._current.poll() is None and time.monotonic() < deadline and not is_enough():
            time.sleep(LINGER_POLL_SECONDS)

    def wait(self, timeout_seconds: float) -> int:
        """Its exit code; it is killed if it has not ended by then."""
        with self._lock:
            self._released = True
            return self._current.wait(timeout_seconds)

    def release(self) -> None:
        """Let go of it, so that it finishes writing and ends. From now on nobody takes its place."""
        with self._lock:
            self._released = True
            self._current.release()


def linger_line(seconds: float) -> str:
    """What users are told when the coordinator stays."""
    return f"waiting up to {math.ceil(seconds)} s until Prometheus has seen the end; Ctrl-C ends at once"


def how_it_ended(code: int) -> str:
    """What an exit code says, in words."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
