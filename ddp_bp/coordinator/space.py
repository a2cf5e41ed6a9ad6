"""How much room the file system of a run directory has.

Asked in a thread and with a deadline, because a network file system that hangs must not hold up the coordinator.
Knows nothing of what is written there.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path
from typing import Final, NamedTuple

ANSWER_SECONDS: Final = 1.0


class Room(NamedTuple):
    """Bytes that can still be written, and bytes in all."""

    free_bytes: int
    size_bytes: int


class RunDirectorySpace:
    """Asks for the room of one folder, once at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asking: asyncio.Task[Room | None] | None = None

    async def room(self) -> Room | None:
        """None if the file system does not say within a second, or refuses; a question that hangs is not repeated."""
        if self._asking is None:
            self._asking = asyncio.create_task(asyncio.to_thread(_room_of, self._folder))
        asking = self._asking
        with contextlib.suppress(TimeoutError):
            answer = await asyncio.wait_for(asyncio.shield(asking), ANSWER_SECONDS)
            self._asking = None
            return answer
        return None


def _room_of(folder: Path) -> Room | None:
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return Room(usage.free, usage.total)
