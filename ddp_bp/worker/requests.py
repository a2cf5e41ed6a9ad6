"""What a rank may ask of all ranks in an agreement, as bits. Knows not what is done about it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntFlag
from functools import reduce
from operator import or_
from types import MappingProxyType
from typing import Final, Literal


class Request(IntFlag):
    """What a rank asks of all ranks in an agreement."""

    STOP_BY_SIGINT = 1
    STOP_BY_SIGTERM = 2
    CHECKPOINT = 4
    CHECKPOINT_IN_FLIGHT = 8
    STOP_BY_SIGUSR1 = 16
    STOP_TO_RESIZE = 32
    STOP_TOO_FEW = 64


STOP_REQUESTS: Mapping[str, Request] = MappingProxyType(
    {
        "SIGINT": Request.STOP_BY_SIGINT,
        "user": Request.STOP_BY_SIGINT,
        "SIGTERM": Request.STOP_BY_SIGTERM,
        "SIGUSR1": Request.STOP_BY_SIGUSR1,
        "resize": Request.STOP_TO_RESIZE,
        "respawn": Request.STOP_TO_RESIZE,
        "too_few": Request.STOP_TOO_FEW,
    }
)
STOP_SIGNALS: Final[tuple[Literal["SIGINT", "SIGTERM", "SIGUSR1"], ...]] = ("SIGINT", "SIGTERM", "SIGUSR1")
STOPS = reduce(or_, STOP_REQUESTS.values())
