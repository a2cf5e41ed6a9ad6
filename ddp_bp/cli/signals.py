"""What signals mean to a command that has started processes: it is told, and ends them itself."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from ddp_bp.worker.signals import STOP_EXIT_CODES

__all__ = ["STOP_EXIT_CODES", "ends_at_once", "stop_exit_code", "stop_signals"]


def ends_at_once(asked: Sequence[str]) -> bool:
    """Whether whoever sent these signals does not want to wait: SIGINT or SIGTERM twice. SIGUSR1 only announces."""
    return sum(name in ("SIGINT", "SIGTERM") for name in asked) > 1


def stop_exit_code(asked: Sequence[str]) -> int:
    """What a job exits with that was asked to stop: the code of the first signal; without one, as after Ctrl-C."""
    return STOP_EXIT_CODES[next((name for name in asked if name in STOP_EXIT_CODES), "SIGINT")]


@contextlib.contextmanager
def stop_signals() -> Iterator[list[str]]:
    """While inside, the names of the signals to stop that arrived, in order: SIGINT, SIGTERM, SIGUSR1."""
    asked: list[str] = []

    def handle(number: int, _: FrameType | None) -> None:
        asked.append(signal.Signals(number).name)

    numbers = map(signal.Signals.__getitem__, STOP_EXIT_CODES)
    before: dict[int, Any] = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
