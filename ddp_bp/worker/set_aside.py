"""Rooms in the heap that are set aside, so that small things which stay do not make a process grow by large arrays.

A step frees large arrays, and finds the same rooms again in the next step. A small thing that stays, such as the 35 KB
that MPI keeps of a communicator after each death, takes the smallest room that is left; if that is one that a large
array had, this lies elsewhere from then on, and the process has grown by half a megabyte. So before the first step
large rooms between small things are taken, which leaves those at the end of the heap for large arrays; and small ones,
of which one is freed for each recovery. Knows nothing of ranks.
"""

from __future__ import annotations

import ctypes

import numpy as np

from ddp_bp.parallel.communicator import Array

SMALL_BYTES = 64 * 1024
LARGE_BYTES = 256 * 1024
MOST_SMALL, MOST_LARGE = 32, 32


class SetAside:
    """Rooms for as many recoveries; to be made when all that stays is in its place, and before the first step."""

    def __init__(self, num_recoveries: int) -> None:
        heap_end = _heap_end()
        # Written to, so that their pages are there from now on; the large ones have none.
        self._small = [np.full(SMALL_BYTES, 1, np.uint8) for _ in range(min(num_recoveries, MOST_SMALL))]
        self._large = _large_rooms(heap_end)

    def give(self) -> None:
        """A recovery begins; nothing is left to give after many of them."""
        if self._small:
            self._small.pop()


def _heap_end() -> int:
    """The first address after the heap; 0 where that cannot be told."""
    sbrk = getattr(ctypes.CDLL(None), "sbrk", None)
    if sbrk is None:
        return 0
    sbrk.restype = ctypes.c_void_p
    return int(sbrk(ctypes.c_ssize_t(0)) or 0)


def _large_rooms(heap_end: int) -> list[Array]:
    """Those before `heap_end`, of which the C library gives the smallest first."""
    rooms: list[Array] = []
    while len(rooms) < MOST_LARGE:
        room = np.empty(LARGE_BYTES, np.uint8)
        if room.ctypes.data >= heap_end:
            # There was none: the heap has become longer, or this is memory apart from it.
            break
        rooms.append(room)
    return rooms
