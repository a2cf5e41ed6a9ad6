"""Who reads the metrics, how often, and for how long the end of a job is still to be shown so that they see it.

Pure: times are readings of one clock, which are handed in. It knows no HTTP, and not what is read.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Final

MOST_GAP_SECONDS: Final = 20.0
"""A job does not stay for who comes more seldom."""
DUE: Final = 1.25
"""A reader is waited for until so many of its gaps after it last came."""
TIMEOUTS_IN_A_GAP: Final = 1.5
"""Of a Prometheus that has come once: by default it gives up after 10 s, and comes every 15 s if told to."""
KEPT_SECONDS: Final = 120.0
"""A reader that has not come for so long is forgotten. One that comes every minute must not seem to come for the first
time."""
_NUM_TIMES: Final = 3


class Scrapes:
    """The readers of one coordinator's metrics."""

    def __init__(self) -> None:
        self._readers: dict[str, _Reader] = {}
        self._ended_at: float | None = None

    def note(self, reader: str, now: float, timeout_seconds: float | None = None) -> None:
        """A reader gets what is true now. `timeout_seconds`: what a Prometheus says, how long it waits for an answer,
        which is no longer than until it comes again."""
        self._readers = {name: one for name, one in self._readers.items() if now - one.last <= KEPT_SECONDS}
        self._readers.setdefault(reader, _Reader()).note(now, timeout_seconds)

    def job_ended(self, now: float) -> None:
        """From now on what a reader gets is final."""
        self._ended_at = now

    def awaited_seconds(self, now: float) -> float:
        """For how long any reader is still to be waited for at most; 0: for none."""
        awaited = [one for one in self._readers.values() if self._ended_at is None or one.last < self._ended_at]
        return max([0.0, *(one.due_at - now for one in awaited)])


class _Reader:
    """Somebody who has come at least once."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_NUM_TIMES)
        self._timeout_seconds: float | None = None

    def note(self, now: float, timeout_seconds: float | None) -> None:
        self._times.append(now)
        self._timeout_seconds = timeout_seconds

    @property
    def last(self) -> float:
        return self._times[-1]

    @property
    def due_at(self) -> float:
        """Until when it is to be waited for; the time when it last came if it is not."""
        gap = self._gap_seconds()
        return self.last + DUE * gap if gap is not None and gap <= MOST_GAP_SECONDS else self.last

    def _gap_seconds(self) -> float | None:
        """What is expected between two visits: the longer of the last two. Of one who does not come for good, perhaps
        a person with a browser, nothing before the third."""
        times = list(self._times)
        if len(times) < _NUM_TIMES and self._timeout_seconds is None:
            return None
        gaps = [after - before for before, after in pairwise(times)]
        return max(gaps) if gaps else TIMEOUTS_IN_A_GAP * (self._timeout_seconds or 0.0)
