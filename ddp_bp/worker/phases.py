"""Where the time of a step goes: laps of a stopwatch, counted into histograms a few times a second.

Backward compute and waiting for other ranks are separate phases: were waiting part of the backward time, the slow rank
would be the one that looks fast. Knows neither what a phase does nor who reads the counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from time import perf_counter

import numpy as np


class Phase(IntEnum):
    """The phases of one step, in the order of their columns."""

    DATA_WAIT = 0
    FORWARD = 1
    BACKWARD = 2
    RANK_WAIT = 3
    EXCHANGE = 4
    OPTIMIZER = 5
    STEP = 6


# Steps that fit between two looks at the totals: where there are more, rows are folded in between.
_ROWS = 4096


class PhaseClock:
    """A stopwatch for one thread: `start`, then `lap(phase)` after each piece of work, then `stop`."""

    def __init__(self, bucket_bounds_seconds: Sequence[float]) -> None:
        """`bucket_bounds_seconds`: upper bounds of the histogram's buckets, rising; one more bucket lies above them."""
        self._bounds = np.asarray(bucket_bounds_seconds)
        self._rows: list[list[float]] = []
        self._current = [0.0] * len(Phase)
        self._began = self._last = 0.0
        self._counts = np.zeros((len(Phase), len(self._bounds) + 1), np.int64)
        self._sums = np.zeros(len(Phase))

    @property
    def last_lap(self) -> float:
        """When the last lap was taken, or the step begun: another number whenever there was progress."""
        return self._last

    def start(self) -> None:
        """Begin a step."""
        self._current = [0.0] * len(Phase)
        self._began = self._last = perf_counter()

    def lap(self, phase: Phase) -> None:
        """Count the time since the last lap, or since the start, as `phase`."""
        now = perf_counter()
        self._current[phase] += now - self._last
        self._last = now

    def stop(self) -> None:
        """End the step and keep its row."""
        self._current[Phase.STEP] = perf_counter() - self._began
        if len(self._rows) == _ROWS:
            self._fold()
        self._rows.append(self._current)

    def totals(self) -> Mapping[str, tuple[list[int], float]]:
        """For each phase by its small name: counts per bucket and the sum in seconds, of all steps so far."""
        self._fold()
        return {phase.name.lower(): (self._counts[phase].tolist(), float(self._sums[phase])) for phase in Phase}

    def _fold(self) -> None:
        rows = np.array(self._rows).reshape(-1, len(Phase))
        for phase in Phase:
            buckets = np.searchsorted(self._bounds, rows[:, phase])
            self._counts[phase] += np.bincount(buckets, minlength=len(self._bounds) + 1)
        self._sums += rows.sum(axis=0)
        self._rows.clear()
