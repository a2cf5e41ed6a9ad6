"""Memory that is set aside for what each recovery leaves with a process: some 35 KB that MPI keeps of a communicator.

A step frees large arrays, and finds the same room again in the next step. A small thing that stays and is placed in
there takes the room of a whole array, which then lies elsewhere: the process would grow by half a megabyte now and
then. The C library takes the smallest room that is left, so that small rooms are made before the first step, and one is
freed for each recovery. Knows nothing of ranks.
"""

from __future__ import annotations

import numpy as np

ROOM_BYTES = 64 * 1024
MOST_ROOMS = 32


class SetAside:
    """Room for as many recoveries; to be made when all that stays is in its place, and before the first step."""

    def __init__(self, num_recoveries: int) -> None:
        # Written to, so that its pages are there from now on.
        self._rooms = [np.full(ROOM_BYTES, 1, np.uint8) for _ in range(min(num_recoveries, MOST_ROOMS))]

    def give(self) -> None:
        """A recovery begins; nothing is left to give after many of them."""
        if self._rooms:
            self._rooms.pop()
