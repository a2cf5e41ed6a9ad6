"""What SIGINT and SIGTERM mean to a command that has started processes: it is told, and ends them itself."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

STOP_EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}


@contextlib.contextmanager
def stop_signals() -> Iterator[list[str]]:
    """While inside, the names of the SIGINT and SIGTERM that arrived, in order."""
    asked: list[str] = []

    def handle(number: int, _: FrameType | None) -> None:
        asked.append(signal.Signals(number).name)

    before: dict[int, Any] = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
