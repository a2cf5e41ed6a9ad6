"""Starting a job again after a death: when that is sensible, after how long, and how often.

Pure decisions. What would come again is no reason to start again: an error that ranks have shown, input that cannot be
used, a number that is not finite. Those are told from a death by the ranks' own word (see `outcome`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum
from typing import Any

FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 30.0


class Ending(Enum):
    """How an attempt ended."""

    WELL = "well"
    """Trained to the end or stopped with a checkpoint: the coordinator has it on the disk."""
    ERROR = "error"
    """The ranks agreed on an error, and one of them has shown it."""
    ASKED = "asked"
    """Somebody wanted it to end, and did not wait for a checkpoint."""
    DEATH = "death"
    """A process was lost."""


@dataclass(frozen=True)
class Attempt:
    """One start of all ranks. `why`: for a death, who died of what. `exit_code`: what the ranks said, if anything.
    `goes_on`: whether its ranks were only to be started anew; `resize_to`: with how many ranks, if another number was
    asked for. `has_trained`: whether a step was seen. `num_recoveries`: how often ranks went on without dead ones."""

    ending: Ending
    why: str = ""
    exit_code: int | None = None
    goes_on: bool = False
    resize_to: int | None = None
    has_trained: bool = False
    num_recoveries: int = 0


class Seen:
    """What is kept of all that /api/status said during one start. `wanted`: the number of ranks that was asked for."""

    def __init__(self) -> None:
        self.has_trained = False
        self.num_recoveries = 0
        self.wanted: int | None = None
        self._recoveries_before: int | None = None

    def note(self, status: dict[str, Any] | None) -> None:
        """Take in what the coordinator answered; it counts recoveries over all starts."""
        if status is None:
            return
        if self._recoveries_before is None:
            self._recoveries_before = status["recoveries"]
        self.num_recoveries = max(self.num_recoveries, status["recoveries"] - self._recoveries_before)
        self.has_trained |= any(row["last_step_age_seconds"] is not None for row in status["ranks"])
        self.wanted = status["wanted_world_size"]


@dataclass(frozen=True)
class History:
    """Of a job that is started again: how often after a failure, and how often to be another number of ranks; how many
    deaths it has got over, in place or by a restart."""

    num_restarts: int = 0
    num_resizes: int = 0
    num_recoveries: int = 0

    @property
    def num_starts(self) -> int:
        """How many starts were before."""
        return self.num_restarts + self.num_resizes


class Restarts:
    """The budget of restarts: so many in a row that begin at the same step; progress fills it up again."""

    def __init__(self, most: int, generator: random.Random | None = None) -> None:
        """`generator` draws the jitter, so that jobs that died together do not start together."""
        self._most, self._random = most, generator or random.Random()
        self._in_a_row, self._step = 0, -1

    def allow(self, step: int) -> bool:
        """Whether all ranks may be started again from `step`, counting it if so."""
        if step > self._step:
            self._in_a_row, self._step = 0, step
        if self._in_a_row >= self._most:
            return False
        self._in_a_row += 1
        return True

    @property
    def count(self) -> str:
        """How many of the budget are used, for people."""
        return f"{self._in_a_row} of {self._most}"

    def delay_seconds(self) -> float:
        """How long to wait before the restart that was just allowed: twice as long each time in a row, half of it
        drawn at random."""
        longest = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** (self._in_a_row - 1))
        return longest * self._random.uniform(0.5, 1.0)
