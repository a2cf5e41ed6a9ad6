"""What a signal means to a rank: an end in good order at the next step, within a time. Knows not what ends.

All ranks stop when one of them was told to. The exit codes say by what, so that a script can tell an end that was
announced (SIGUSR1: start it again) from one that was wanted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType, MappingProxyType

STOP_EXIT_CODES: Mapping[str, int] = MappingProxyType({"SIGUSR1": 75, "SIGTERM": 143, "SIGINT": 130})
"""The exit code after each signal that ends in good order. 75 is EX_TEMPFAIL of sysexits.h: try again later."""

ANNOUNCEMENTS = ("SIGUSR1", "SIGTERM")
"""Signals after which whoever sent them ends the process by force in a while; SIGINT is from somebody who can wait."""


@contextlib.contextmanager
def stop_signals(
    request_stop: Callable[[str], None], grace_seconds: float, names: Iterable[str] = STOP_EXIT_CODES
) -> Iterator[None]:
    """While inside, a first signal asks for an orderly end; a second one of its kind ends the process as usual.

    Whoever sends SIGUSR1 or SIGTERM ends the process by force in a while: if the orderly end takes longer than
    `grace_seconds` then, the process leaves without it, with the same exit code.
    """
    timers: list[threading.Timer] = []

    def handle(number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        request_stop(name)
        signal.signal(number, signal.SIG_DFL)
        if name in ANNOUNCEMENTS:
            timer = threading.Timer(grace_seconds, _leave, (name, grace_seconds))
            timer.daemon = True
            timer.start()
            timers.append(timer)

    before = {number: signal.signal(number, handle) for number in map(signal.Signals.__getitem__, names)}
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(name: str, grace_seconds: float) -> None:
    print(f"ddp-bp: {name}: no checkpoint within {grace_seconds:g} s; leaving at once", file=sys.stderr, flush=True)
    # The main thread waits for the step, the coordinator or the other ranks.
    os._exit(STOP_EXIT_CODES[name])
