"""Rounding float32 to bfloat16, its upper half, in place: to the nearest, and to even where two are as near.

NumPy has no such type, so values keep their place as float32 with 16 zero bits; `pack` takes the halves that matter.
Pure arithmetic, element by element, so that a result does not depend on how a vector is cut.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ddp_bp.parallel.communicator import Array

# Temporaries of a block stay in the cache.
_BLOCK_ELEMENTS = 32768
# Which of the two halves of a float32 is the upper one.
_UPPER = 1 if np.little_endian else 0


@np.errstate(over="ignore", invalid="ignore")
def round_to_bfloat16(values: Array) -> None:
    """Round float32 `values` (n,) in place. Infinity and NaN stay what they are; what is too large becomes infinite."""
    carries = np.empty(min(values.size, _BLOCK_ELEMENTS), np.uint32)
    for start in range(0, values.size, _BLOCK_ELEMENTS):
        block = values[start : start + _BLOCK_ELEMENTS]
        # One product reads the block once; a carry could turn a NaN into a number.
        nans = None if math.isfinite(np.dot(block, block)) else np.isnan(block)
        bits, carry = block.view(np.uint32), carries[: block.size]
        np.right_shift(bits, 16, out=carry)
        carry &= 1
        carry += 0x7FFF
        bits += carry
        bits &= 0xFFFF0000
        if nans is not None:
            block[nans] = np.nan


def add_rounded(total: Array, other: Array, num_rounded: int) -> None:
    """`total += other` (n,), of which the first `num_rounded` elements are then rounded, block by block."""
    if num_rounded <= 0:
        total += other
        return
    for start in range(0, total.size, _BLOCK_ELEMENTS):
        block = total[start : start + _BLOCK_ELEMENTS]
        block += other[start : start + _BLOCK_ELEMENTS]
        round_to_bfloat16(block[: max(0, num_rounded - start)])


def round_with_feedback(values: Array, errors: Array, new_errors: Array) -> None:
    """Round `values` plus `errors` (n,) in place, and leave in `new_errors` what rounding has taken away."""
    for start in range(0, values.size, _BLOCK_ELEMENTS):
        block = values[start : start + _BLOCK_ELEMENTS]
        left = new_errors[start : start + _BLOCK_ELEMENTS]
        block += errors[start : start + _BLOCK_ELEMENTS]
        np.copyto(left, block)
        round_to_bfloat16(block)
        left -= block


def pack(values: Array, halves: npt.NDArray[np.uint16]) -> None:
    """The upper halves of float32 `values` (n,), which have been rounded, into `halves` (n,)."""
    np.copyto(halves, values.view(np.uint16)[_UPPER::2])


def unpack(halves: npt.NDArray[np.uint16], values: Array) -> None:
    """What `pack` was given, into float32 `values` (n,)."""
    np.left_shift(halves, 16, out=values.view(np.uint32), dtype=np.uint32)
