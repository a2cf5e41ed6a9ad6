"""A deadline for what a rank waits for while nobody watches it: MPI's start, others that load their data, MPI's end.

Knows not what a rank does.
"""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[Callable[[], None]]:
    """Unless the block ends, or what is given is called, within `seconds` (0: never), show where this process is and
    end it.

    The launcher ends the other ranks then, one that is stopped among them, unless it was told to let them go on.
    """
    if seconds:
        # Not a thread of Python's: the one that waits in MPI_Init or MPI_Finalize holds Python's lock.
        faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield faulthandler.cancel_dump_traceback_later
    finally:
        faulthandler.cancel_dump_traceback_later()
