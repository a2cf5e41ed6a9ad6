"""A deadline for what a rank waits for before anybody watches it: MPI's own start, and the others to load their data.

Knows not what a rank does.
"""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def start_deadline(seconds: float) -> Iterator[Callable[[], None]]:
    """Unless what is given is called within `seconds` (0: never), show where this process is and end it.

    The launcher ends the other ranks then, one that is stopped among them.
    """
    if seconds:
        # Not a thread of Python's: the one that waits in MPI_Init holds Python's lock.
        faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield faulthandler.cancel_dump_traceback_later
    finally:
        faulthandler.cancel_dump_traceback_later()
