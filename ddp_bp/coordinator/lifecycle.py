"""The life of a job as a table: from which state which signal leads where.

What is not in the table changes nothing. This module knows no message and no time.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final


class State(enum.Enum):
    """What the job is doing, as the coordinator sees it."""

    WAITING = "waiting"
    """Not every rank has said hello yet."""
    TRAINING = "training"
    STOPPING = "stopping"
    """Told to end early: the ranks finish a step and send a last checkpoint."""
    FINISHED = "finished"
    """Trained to the end."""
    FAILED = "failed"
    """A rank raised, or all of them vanished."""


class Signal(enum.Enum):
    """What can change the state."""

    ALL_JOINED = "all joined"
    STOP_ASKED = "stop asked"
    TRAINED = "trained"
    BROKE = "broke"


TRANSITIONS: Final[Mapping[tuple[State, Signal], State]] = MappingProxyType(
    {
        (State.WAITING, Signal.ALL_JOINED): State.TRAINING,
        (State.WAITING, Signal.STOP_ASKED): State.STOPPING,
        # Ranks start when each of them is welcome; rank 0 may be done before a slow link brings another's hello.
        (State.WAITING, Signal.TRAINED): State.FINISHED,
        (State.WAITING, Signal.BROKE): State.FAILED,
        (State.TRAINING, Signal.STOP_ASKED): State.STOPPING,
        (State.TRAINING, Signal.TRAINED): State.FINISHED,
        (State.TRAINING, Signal.BROKE): State.FAILED,
        # A stop that came too late to cut anything short.
        (State.STOPPING, Signal.TRAINED): State.FINISHED,
        (State.STOPPING, Signal.BROKE): State.FAILED,
    }
)

ENDED: Final = frozenset({State.FINISHED, State.FAILED})


def advance(state: State, signal: Signal) -> State:
    """The state after a signal; the same one where the signal means nothing in it."""
    return TRANSITIONS.get((state, signal), state)
