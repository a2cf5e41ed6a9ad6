"""Pooling: the maximum or the mean of each window, tap by tap over a few images at a time."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ddp_bp.engine.ops.layout import channels_first, channels_last
from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation, describe
from ddp_bp.engine.ops.windows import Padded, Pair, Window, image_runs
from ddp_bp.errors import DtypeError, ShapeError


class _Saved(NamedTuple):
    images: Array
    output: Array
    """(N, *positions, C)."""
    window: Window
    num_axes: int
    num_all_axes: int


def _images(name: str, num_axes: int, a: Array) -> Array:
    if a.dtype.kind != "f":
        raise DtypeError(f"{name} got an input of {describe(a)}; it takes a floating one")
    if a.ndim not in (num_axes + 1, num_axes + 2):
        axes = "L" if num_axes == 1 else "H, W"
        raise ShapeError(f"{name} got an input of {describe(a)}; it takes an input (N, C, {axes}) or (C, {axes})")
    return channels_last(a, num_axes)


def _pool_window(
    name: str, a: Array, images: Array, size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[Window, Pair]:
    """The window and its positions. With `ceil_mode` it may hang over the end, but must start inside or before it."""
    if min(*size, *stride, *dilation) < 1 or any(not 0 <= 2 * p <= s for p, s in zip(padding, size, strict=True)):
        raise ShapeError(
            f"{name} got kernel_size {size}, stride {stride}, padding {padding} and dilation {dilation}; it takes "
            "sizes, strides and dilations above 0 and a padding of at most half the window"
        )
    if len(size) == 1:
        size, stride, padding, dilation = (1, *size), (1, *stride), (0, *padding), (1, *dilation)
    window = Window(size, stride, dilation, ((padding[0], padding[0]), (padding[1], padding[1])))
    extent = (images.shape[1], images.shape[2])
    counts = list(window.positions(*extent))
    paddings = list(window.padding)
    for axis in (0, 1):
        room = extent[axis] + 2 * padding[axis] - window.reach(axis) - 1
        if ceil_mode and room >= 0:
            counts[axis] = -(-room // stride[axis]) + 1
            if (counts[axis] - 1) * stride[axis] >= extent[axis] + padding[axis]:
                counts[axis] -= 1
            overhang = (counts[axis] - 1) * stride[axis] - room
            paddings[axis] = (padding[axis], padding[axis] + max(overhang, 0))
    if min(counts) < 1:
        raise ShapeError(
            f"{name} got an input of {describe(a)} with kernel_size {size}, dilation {dilation} and padding "
            f"{padding}; it takes a window that fits into the padded input"
        )
    return window._replace(padding=(paddings[0], paddings[1])), (counts[0], counts[1])


def _max_pool(
    name: str, num_axes: int, a: Array, size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[Array, Any]:
    images = _images(name, num_axes, a)
    window, positions = _pool_window(name, a, images, size, stride, padding, dilation, ceil_mode)
    output = np.empty((len(images), *positions, images.shape[3]), images.dtype)
    padded = Padded(images, window, value=-math.inf)
    for run in padded.runs:
        block, best = padded[run], output[run]
        for number, (_, _, place) in enumerate(window.taps(positions)):
            if number == 0:
                np.copyto(best, block[place])
            else:
                np.maximum(best, block[place], out=best)
    return channels_first(output, num_axes, a.ndim), _Saved(images, output, window, num_axes, a.ndim)


def _max_pool_vjp(gradient: Array, saved: _Saved, needs: Needs) -> Gradients:  # noqa: ARG001
    images, output, window, num_axes, num_all_axes = saved
    rows = channels_last(gradient, num_axes)
    positions = (output.shape[1], output.shape[2])
    result = np.empty_like(images)
    padded = Padded(images, window, value=-math.inf)
    # Windows that do not overlap: each pixel has one window at most, so that nothing needs to be added up.
    is_disjoint = window.dilation == (1, 1) and all(s >= k for s, k in zip(window.stride, window.size, strict=True))
    is_bare = not any(map(any, window.padding))
    # Disjoint windows that hold as many pixels as the bare image hold every one of them, and write every one.
    is_covered = is_bare and is_disjoint and math.prod(images.shape[1:3]) == math.prod(positions + window.size)
    for run in padded.runs:
        block, best, incoming = padded[run], output[run], rows[run]
        total = result[run] if is_bare else np.empty_like(block)
        if not is_covered:
            total.fill(0)
        # Of equal maxima, the first in scan order gets the gradient, as in PyTorch.
        is_open = np.ones(best.shape, np.bool_)
        is_it = np.empty(best.shape, np.bool_)
        share = np.empty_like(best)
        for _, _, place in window.taps(positions):
            np.equal(block[place], best, out=is_it)
            is_it &= is_open
            is_open ^= is_it
            if is_disjoint:
                np.multiply(incoming, is_it, out=total[place])
            else:
                total[place] += np.multiply(incoming, is_it, out=share)
        if not is_bare:
            result[run] = _inside(total, window, images)
    return (channels_first(result, num_axes, num_all_axes),)


def _inside(padded: Array, window: Window, images: Array) -> Array:
    (top, _), (left, _) = window.padding
    return padded[:, top : top + images.shape[1], left : left + images.shape[2]]


class _AverageSaved(NamedTuple):
    shape: tuple[int, ...]
    """(N, H, W, C)."""
    scale: Array
    """One over the number of pixels that each window's mean divides by: (*positions, 1)."""
    window: Window
    num_axes: int
    num_all_axes: int


def _avg_pool(
    name: str,
    num_axes: int,
    a: Array,
    size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> tuple[Array, Any]:
    images = _images(name, num_axes, a)
    window, positions = _pool_window(name, a, images, size, stride, padding, (1,) * len(size), ceil_mode)
    if divisor == 0:
        raise ShapeError(f"{name} got divisor_override 0; it takes another number or None")
    border = (0, *padding) if len(padding) == 1 else tuple(padding)
    counts = [
        _counts(window, positions[axis], images.shape[1 + axis], border[axis], axis, count_include_pad)
        for axis in (0, 1)
    ]
    divisors = np.multiply.outer(*counts) if divisor is None else np.full(positions, divisor)
    scale = (1.0 / divisors).astype(images.dtype)[..., None]
    output = np.empty((len(images), *positions, images.shape[3]), images.dtype)
    padded = Padded(images, window)
    for run in padded.runs:
        block, total = padded[run], output[run]
        for number, (_, _, place) in enumerate(window.taps(positions)):
            if number == 0:
                np.copyto(total, block[place])
            else:
                total += block[place]
        total *= scale
    return channels_first(output, num_axes, a.ndim), _AverageSaved(images.shape, scale, window, num_axes, a.ndim)


def _counts(window: Window, count: int, extent: int, border: int, axis: int, count_include_pad: bool) -> Array:
    """How many pixels the windows at `count` positions along an axis hold, with or without the border."""
    starts = np.arange(count) * window.stride[axis] - border
    # What hangs over the border is never counted: ceil_mode adds windows, not pixels.
    ends = np.minimum(starts + window.size[axis], extent + border)
    if count_include_pad:
        return np.asarray(ends - starts)
    return np.asarray(np.minimum(ends, extent) - np.maximum(starts, 0))


def _avg_pool_vjp(gradient: Array, saved: _AverageSaved, needs: Needs) -> Gradients:  # noqa: ARG001
    shape, scale, window, num_axes, num_all_axes = saved
    rows = channels_last(gradient, num_axes)
    positions = (rows.shape[1], rows.shape[2])
    result = np.empty(shape, gradient.dtype)
    (top, bottom), (left, right) = window.padding
    padded_shape = (shape[1] + top + bottom, shape[2] + left + right, shape[3])
    for run in image_runs(shape[0], math.prod(padded_shape) * gradient.itemsize):
        share = rows[run] * scale
        total = np.zeros((len(share), *padded_shape), gradient.dtype)
        for _, _, place in window.taps(positions):
            total[place] += share
        result[run] = _inside(total, window, result)
    return (channels_first(result, num_axes, num_all_axes),)


def _adaptive_avg_pool(name: str, num_axes: int, a: Array, size: Any) -> tuple[Array, Any]:
    images = _images(name, num_axes, a)
    wanted = (1, *size) if num_axes == 1 else tuple(size)
    if min(wanted) < 1 or min(images.shape[1:]) < 1:
        raise ShapeError(
            f"{name} got an input of {describe(a)} for output_size {size}; it takes sizes above 0 and an input "
            "with at least one channel and one pixel"
        )
    down = _averages(images.shape[1], wanted[0], images.dtype)
    across = _averages(images.shape[2], wanted[1], images.dtype)
    output = _apply_along(images, down, across)
    return channels_first(output, num_axes, a.ndim), (down, across, num_axes, a.ndim)


def _adaptive_avg_pool_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    down, across, num_axes, num_all_axes = saved
    result = _apply_along(channels_last(gradient, num_axes), down.T, across.T)
    return (channels_first(result, num_axes, num_all_axes),)


def _averages(extent: int, count: int, dtype: Any) -> Array:
    """(count, extent): window i averages pixels [floor(i * extent / count), ceil((i + 1) * extent / count))."""
    numbers, pixels = np.arange(count)[:, None], np.arange(extent)
    starts = numbers * extent // count
    ends = -(-(numbers + 1) * extent // count)
    return np.asarray(((pixels >= starts) & (pixels < ends)) / (ends - starts), dtype)


def _apply_along(images: Array, down: Array, across: Array) -> Array:
    """Multiplies the rows of (N, H, W, C) by `down` (h, H) and the columns by `across` (w, W): (N, h, w, C)."""
    num_images, height, width, num_channels = images.shape
    rows = np.matmul(down, images.reshape(num_images, height, width * num_channels))
    pixels = rows.reshape(num_images * len(down), width, num_channels)
    return np.reshape(np.matmul(across, pixels), (num_images, len(down), len(across), num_channels))


_POOL = "an input (N, C, *spatial) or (C, *spatial) of floats and the window's kernel_size, stride and padding"


def _max_operation(name: str, num_axes: int) -> Operation:
    return Operation(name, partial(_max_pool, name, num_axes), _max_pool_vjp, _POOL, reads=(0,), reads_output=True)


MAX_POOL1D = _max_operation("max_pool1d", 1)
MAX_POOL2D = _max_operation("max_pool2d", 2)
AVG_POOL1D = Operation("avg_pool1d", partial(_avg_pool, "avg_pool1d", 1), _avg_pool_vjp, _POOL)
AVG_POOL2D = Operation("avg_pool2d", partial(_avg_pool, "avg_pool2d", 2), _avg_pool_vjp, _POOL)
ADAPTIVE_AVG_POOL1D = Operation(
    "adaptive_avg_pool1d", partial(_adaptive_avg_pool, "adaptive_avg_pool1d", 1), _adaptive_avg_pool_vjp, _POOL
)
ADAPTIVE_AVG_POOL2D = Operation(
    "adaptive_avg_pool2d", partial(_adaptive_avg_pool, "adaptive_avg_pool2d", 2), _adaptive_avg_pool_vjp, _POOL
)

OPERATIONS = (MAX_POOL1D, MAX_POOL2D, AVG_POOL1D, AVG_POOL2D, ADAPTIVE_AVG_POOL1D, ADAPTIVE_AVG_POOL2D)
