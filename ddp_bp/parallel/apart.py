"""Arrays in memory of their own, for what a rank holds as long as its team lasts.

A step frees much, which stays with the process for the next one. What outlives steps must not be placed in there: the
large arrays of later steps would no longer fit where they were, and the process would grow with each recovery.
"""

from __future__ import annotations

import math
import mmap

import numpy as np
import numpy.typing as npt

from ddp_bp.parallel.communicator import Array


def allocate_apart(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """A zeroed array outside of the heap, whose memory goes back to the system when it is no longer used."""
    kind, num_elements = np.dtype(dtype), math.prod((shape,) if isinstance(shape, int) else shape)
    memory = mmap.mmap(-1, max(num_elements * kind.itemsize, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array: Array = np.frombuffer(memory, kind, num_elements).reshape(shape)
    return array
