"""Images with their channels last: the memory layout in which convolution, pooling and batch norm compute.

Tensors keep PyTorch's axes (N, C, H, W). With channels last in memory, the elements of a window that lie beside each
other are contiguous and a convolution is a product of long rows, so results are views of (N, H, W, C) arrays with their
axes in PyTorch's order, and the next operation takes them without a copy. Signals (N, C, L) are images of height 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ddp_bp.engine.ops.operation import Array

# Elements in a block that elementwise work goes through several times: it and its scratch stay in the L2 cache.
_BLOCK_SIZE = 32768


def channels_last(a: Array, num_axes: int) -> Array:
    """(N, C, *spatial) or (C, *spatial), with `num_axes` spatial axes, 0 to 2, as a contiguous (N, H, W, C)."""
    if a.ndim == num_axes + 1 and num_axes:
        a = a[None]
    if num_axes == 2:
        return np.ascontiguousarray(a.transpose(0, 2, 3, 1))
    return np.ascontiguousarray(a[:, None, None, :] if num_axes == 0 else a[:, None].transpose(0, 1, 3, 2))


def channels_first(image: Array, num_axes: int, num_all_axes: int) -> Array:
    """A view of (N, H, W, C) in the form that `channels_last` was given: `num_all_axes` axes in all."""
    if num_axes == 2:
        a = image.transpose(0, 3, 1, 2)
    else:
        a = image[:, 0, 0] if num_axes == 0 else image[:, 0].transpose(0, 2, 1)
    return a[0] if num_all_axes == num_axes + 1 and num_axes else a


def pixel_rows(image: Array) -> Array:
    """(N, H, W, C) as (N * H, W * C): rows long enough to work on at full speed, whatever C is."""
    num_images, height, width, num_channels = image.shape
    return image.reshape(num_images * height, width * num_channels)


def for_rows(channels: Array, image: Array) -> Array:
    """(C,) repeated for each pixel of a block of `pixel_rows`.

    Operands of one shape are gone through without a stop at the end of each row, which doubles the speed.
    """
    num_images, height, width, num_channels = image.shape
    num_rows = min(num_images * height, block_length(width * num_channels))
    return np.broadcast_to(channels, (num_rows, width, num_channels)).reshape(num_rows, width * num_channels)


def channel_sums(image: Array, out: Array | None = None) -> Array:
    """The sums over all but the last axis of a contiguous (N, H, W, C): (C,)."""
    rows = np.add.reduce(pixel_rows(image), axis=0)
    return np.asarray(np.add.reduce(rows.reshape(image.shape[2:]), axis=0, out=out))


def block_length(row_size: int) -> int:
    """How many rows of `row_size` elements make a block that fits the cache."""
    return max(1, _BLOCK_SIZE // max(row_size, 1))


def row_blocks(num_rows: int, row_size: int) -> Iterator[slice]:
    """Slices that cut rows into blocks of `block_length`. They depend on the shape only, and so do sums over them."""
    step = block_length(row_size)
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))
