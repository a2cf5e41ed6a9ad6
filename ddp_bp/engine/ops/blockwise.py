"""Elementwise functions of many steps together with their slopes, a block at a time.

All intermediate results of a block stay in the cache, and the slope is computed while its ingredients are there, so
that the reverse pass is one product and the input need not be kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ddp_bp.engine.ops.layout import row_blocks
from ddp_bp.engine.ops.operation import Array

Fill: TypeAlias = Callable[[Array, Array, Array], None]
"""(x, output, slope), all (n,): reads x and writes the other two, whose memory it may use on the way."""


def with_slopes(a: Array, fill: Fill) -> tuple[Array, Array]:
    """What `fill` makes of all elements of `a`: the function's values and its slopes, in the memory layout of `a`."""
    if not a.flags.c_contiguous:
        order = sorted(range(a.ndim), key=lambda axis: -abs(a.strides[axis]))
        # Back in the layout of `a`, so that what is computed with both goes through memory in order.
        back = sorted(range(a.ndim), key=order.__getitem__)
        output, slope = with_slopes(np.ascontiguousarray(a.transpose(order)), fill)
        return output.transpose(back), slope.transpose(back)
    output, slope = np.empty_like(a), np.empty_like(a)
    flat, values, slopes = a.reshape(-1), output.reshape(-1), slope.reshape(-1)
    for block in row_blocks(a.size, 1):
        fill(flat[block], values[block], slopes[block])
    return output, slope
