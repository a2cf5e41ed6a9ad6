"""Sums of squares in an order that no cut can change: over rows, which begin at fixed elements of the flat vector.

Slices that begin on a row have whole rows, so the sums of all slices side by side are those of the whole vector, bit
for bit. How such sums are then added up is for the caller to say; the order must only not depend on the slices.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ddp_bp.engine.ops.operation import Array
from ddp_bp.errors import ShapeError

# Slices of ranks begin on multiples of this as well.
ROW_ELEMENTS = 1024

# Rows squared at once: 256 KiB of float64.
_BLOCK_ROWS = 32


def row_square_sums(values: Array, lo: int = 0) -> npt.NDArray[np.float64]:
    """The sum of squares of each row of `values` (n,), which are elements [lo, lo + n) of a flat vector.

    Returns (ceil(n / ROW_ELEMENTS),), computed in float64. Raises ShapeError unless `lo` is where a row begins. A slice
    that is not the last one takes whole rows.
    """
    check_row(lo)
    return square_sums(values, np.arange(0, values.size, ROW_ELEMENTS))


def square_sums(values: Array, starts: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """The sums of squares of the pieces of `values` (n,) that begin at `starts`, in float64; none exceeds a row.

    `starts` ascends from 0, and has every multiple of ROW_ELEMENTS below n.
    """
    sums = np.empty(starts.size)
    block = _BLOCK_ROWS * ROW_ELEMENTS
    squares = np.empty(min(block, values.size))
    done = 0
    for first in range(0, values.size, block):
        part = values[first : first + block]
        end = starts.size if part.size < block else int(np.searchsorted(starts, first + block))
        square = squares[: part.size]
        np.copyto(square, part)
        square *= square
        np.add.reduceat(square, starts[done:end] - first, out=sums[done:end])
        done = end
    return sums


def check_row(lo: int) -> None:
    if lo % ROW_ELEMENTS:
        raise ShapeError(f"sums over rows take a slice that begins at a multiple of {ROW_ELEMENTS} and got {lo}")
