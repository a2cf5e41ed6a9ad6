"""Has the C library keep memory that is freed, so that a step does not ask the kernel for it again, and Python leave
alone what stays.

By default glibc gives large arrays back as soon as they are freed, and the kernel clears each page anew when it is next
touched: thousands of page faults a step where activations are large. A rank trains in steps that are all alike, and so
needs again what it has just freed; from then on it keeps as much as a step holds at most.

A full garbage collection looks at every object: 34 ms in the median for those of NumPy, MPI and a model, in the middle
of a step, and 0.2 ms without them. Knows nothing of ranks.
"""

from __future__ import annotations

import ctypes
import gc
import sys

from ddp_bp.cli.environment import names_allocation

_LARGEST_INT = 2**31 - 1
# Parameters of glibc's mallopt.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_TOP_PAD_BYTES = 16 * 2**20
_DEFAULT_MMAP_THRESHOLD_BYTES = 128 * 1024
# Versions before 2.35 take no more than the second as the size from which on an array is a mapping of its own.
_MMAP_THRESHOLDS_BYTES = (2**30, 32 * 2**20)


def give_back_large_arrays() -> bool:
    """From now on, in this process, until `settle_memory`: by glibc alone, which otherwise gives back the first ones
    only. What is loaded and freed again, such as a checkpoint, leaves no room that nothing fits in later.
    """
    mallopt = None if names_allocation() else getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_MMAP_THRESHOLD, _DEFAULT_MMAP_THRESHOLD_BYTES))


def settle_memory() -> bool:
    """To be called when all that stays with this process is in its place; see `keep_freed_memory`."""
    gc.collect()
    gc.freeze()
    return keep_freed_memory()


def keep_freed_memory() -> bool:
    """From now on, in this process; what is free already is given back. Whether that is done: by glibc alone.

    Not where somebody has chosen such settings by environment variables.
    """
    if not sys.platform.startswith("linux") or names_allocation():
        return False
    library = ctypes.CDLL(None)
    mallopt, trim = getattr(library, "mallopt", None), getattr(library, "malloc_trim", None)
    if mallopt is None or trim is None:
        return False
    trim(ctypes.c_size_t(0))
    return bool(
        mallopt(_TRIM_THRESHOLD, _LARGEST_INT)
        and mallopt(_TOP_PAD, _TOP_PAD_BYTES)
        and any(mallopt(_MMAP_THRESHOLD, size) for size in _MMAP_THRESHOLDS_BYTES)
    )
