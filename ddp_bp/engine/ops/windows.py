"""The geometry of windows that slide over images (N, H, W, C), and blocks of their contents as matrix rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ddp_bp.engine.ops.operation import Array

Pair: TypeAlias = tuple[int, int]

# Bytes of window contents gathered at a time. Measured: from 0.2 MB to 2 MB within a few percent of each other; with
# the contents of a whole batch of images at a time a convolution takes up to three times as long.
_COLUMN_BYTES = 1 << 20
# Bytes of images in a run that is gone through once for each tap.
_RUN_BYTES = 1 << 18


class Window(NamedTuple):
    """A window of `size` taps, `dilation` pixels apart, that moves by `stride` over an image with `padding` around it.

    Each is a pair (vertical, horizontal); each padding a pair (before, after), where a negative one cuts pixels off.
    """

    size: Pair
    stride: Pair
    dilation: Pair
    padding: tuple[Pair, Pair]

    def reach(self, axis: int) -> int:
        """Pixels from the first tap to the last."""
        return self.dilation[axis] * (self.size[axis] - 1)

    def positions(self, height: int, width: int) -> Pair:
        """How many positions the window has over an image; 0 or less if it does not fit."""
        heights, widths = (
            (extent + sum(self.padding[axis]) - self.reach(axis) - 1) // self.stride[axis] + 1
            for axis, extent in enumerate((height, width))
        )
        return heights, widths

    def taps(self, positions: Pair) -> Iterator[tuple[int, int, tuple[slice, slice, slice]]]:
        """For each tap, in scan order, its row and column in the window and what it sees of the padded images."""
        for row in range(self.size[0]):
            for column in range(self.size[1]):
                starts = (row * self.dilation[0], column * self.dilation[1])
                seen = [
                    slice(start, start + (count - 1) * stride + 1, stride)
                    for start, count, stride in zip(starts, positions, self.stride, strict=True)
                ]
                yield row, column, (slice(None), seen[0], seen[1])


def image_runs(num_images: int, image_bytes: int, limit_bytes: int = _RUN_BYTES) -> list[slice]:
    """The images cut into runs of at most about `limit_bytes`, of one image at least. The first is the longest."""
    step = min(max(1, limit_bytes // max(image_bytes, 1)), max(num_images, 1))
    return [slice(start, min(start + step, num_images)) for start in range(0, num_images, step)]


class Padded:
    """Runs of images (N, H, W, C) with the window's padding, of `value`, around them; made when asked for."""

    def __init__(self, images: Array, window: Window, runs: list[slice] | None = None, value: float = 0.0) -> None:
        (top, bottom), (left, right) = window.padding
        num_images, height, width, num_channels = images.shape
        shape = (height + top + bottom, width + left + right, num_channels)
        self.runs = image_runs(num_images, math.prod(shape) * images.itemsize) if runs is None else runs
        self._source = images[:, max(-top, 0) : height - max(-bottom, 0), max(-left, 0) : width - max(-right, 0)]
        self._buffer: Array | None = None
        if max(top, bottom, left, right) > 0 and self.runs:
            self._buffer = np.full((self.runs[0].stop, *shape), value, images.dtype)
            _, height, width, _ = self._source.shape
            top, left = max(top, 0), max(left, 0)
            self._inside = self._buffer[:, top : top + height, left : left + width]

    def __getitem__(self, run: slice) -> Array:
        """The padded images of `run`; valid until the next run is asked for."""
        source = self._source[run]
        if self._buffer is None:
            return source
        np.copyto(self._inside[: len(source)], source)
        return self._buffer[: len(source)]


def column_blocks(images: Array, window: Window, positions: Pair) -> Iterator[tuple[tuple[slice, slice], Array]]:
    """The contents of all windows, block by block: where, as slices of (images, rows of positions), and (n, taps * C).

    Taps come in scan order, each with all its channels. A block is valid until the next one is asked for. How the
    windows are cut into blocks depends on the shapes only.
    """
    num_images, _, _, num_channels = images.shape
    num_rows, num_columns = positions
    row_bytes = num_columns * window.size[0] * window.size[1] * num_channels * images.itemsize
    runs = image_runs(num_images, num_rows * row_bytes, _COLUMN_BYTES)
    padded = Padded(images, window, runs)
    if window.size == (1, 1) and window.stride == (1, 1):
        for run in runs:
            block = padded[run][:, :num_rows, :num_columns]
            yield (run, slice(0, num_rows)), block.reshape(-1, num_channels)
        return
    # A single image may still be too large for one block.
    run_size = runs[0].stop if runs else 0
    step = num_rows if run_size > 1 else min(num_rows, max(1, _COLUMN_BYTES // max(row_bytes, 1)))
    buffer = np.empty((run_size, step, num_columns, *window.size, num_channels), images.dtype)
    for run in runs:
        seen = window_contents(padded[run], window, positions)
        for start in range(0, num_rows, step):
            rows = slice(start, min(start + step, num_rows))
            block = buffer[: len(seen), : rows.stop - rows.start]
            np.copyto(block, seen[:, rows])
            yield (run, rows), block.reshape(-1, window.size[0] * window.size[1] * num_channels)


def window_contents(padded: Array, window: Window, positions: Pair) -> Array:
    """A view (n, *positions, *size, C) of the padded images."""
    image, row, pixel, channel = padded.strides
    (down, across), (apart_down, apart_across) = window.stride, window.dilation
    return as_strided(
        padded,
        (len(padded), *positions, *window.size, padded.shape[3]),
        (image, row * down, pixel * across, row * apart_down, pixel * apart_across, channel),
        writeable=False,
    )
