"""Depthwise convolutions: each channel has filters of its own, so there is no product, only taps to multiply and add.

A weight (C * m, 1, kh, kw) gives m channels for each of the C channels that come in.
"""

from __future__ import annotations

import math

import numpy as np

from ddp_bp.engine.ops.operation import Array
from ddp_bp.engine.ops.windows import Padded, Pair, Window, image_runs, window_contents


def depthwise_convolve(images: Array, weight: Array, window: Window, positions: Pair) -> Array:
    """(N, H, W, C) with a weight (C * m, 1, kh, kw): (N, *positions, C * m), contiguous."""
    num_images, num_channels = len(images), images.shape[3]
    filters = _filters(weight, num_channels, positions[1])
    output = np.empty((num_images, *positions, num_channels, len(filters)), images.dtype)
    padded = Padded(images, window)
    for run in padded.runs:
        block = padded[run]
        total = np.empty((len(block), *positions, num_channels), images.dtype)
        product = np.empty_like(total)
        for number, taps in enumerate(filters):
            total.fill(0)
            for row, column, place in window.taps(positions):
                total += np.multiply(block[place], taps[row, column], out=product)
            output[run, ..., number] = total
    return output.reshape(num_images, *positions, len(weight))


def depthwise_weight_gradient(images: Array, gradient: Array, window: Window, out: Array) -> None:
    """Writes the gradient of the weight (C * m, 1, kh, kw) into `out`."""
    num_channels = images.shape[3]
    positions = (gradient.shape[1], gradient.shape[2])
    multiplier = len(out) // num_channels
    parts = gradient.reshape(*gradient.shape[:3], num_channels, multiplier)
    # Columns are kept apart until the end, so that rows of an image are multiplied and added as a whole.
    totals = np.zeros((multiplier, *window.size, positions[1], num_channels), out.dtype)
    padded = Padded(images, window)
    for run in padded.runs:
        contents = window_contents(padded[run], window, positions)
        for number, total in enumerate(totals):
            part = np.ascontiguousarray(parts[run, ..., number])
            # einsum multiplies and adds in one pass.
            total += np.einsum("nhwklc,nhwc->klwc", contents, part)
    out[...] = np.add.reduce(totals, axis=3).transpose(3, 0, 1, 2).reshape(out.shape)


def depthwise_input_gradient(gradient: Array, weight: Array, window: Window, extent: Pair, groups: int) -> Array:
    """The gradient (N, *extent, C) of the images that `gradient` (N, *positions, C * m) was computed from."""
    num_images = len(gradient)
    positions = (gradient.shape[1], gradient.shape[2])
    (top, bottom), (left, right) = window.padding
    filters = _filters(weight, groups, positions[1])
    parts = gradient.reshape(*gradient.shape[:3], groups, len(filters))
    padded_shape = (extent[0] + top + bottom, extent[1] + left + right, groups)
    output = np.empty((num_images, *extent, groups), gradient.dtype)
    for run in image_runs(num_images, math.prod(padded_shape) * gradient.itemsize):
        padded = np.zeros((run.stop - run.start, *padded_shape), gradient.dtype)
        product = np.empty((run.stop - run.start, *positions, groups), gradient.dtype)
        for number, taps in enumerate(filters):
            part = np.ascontiguousarray(parts[run, ..., number])
            for row, column, place in window.taps(positions):
                padded[place] += np.multiply(part, taps[row, column], out=product)
        output[run] = padded[:, top : top + extent[0], left : left + extent[1]]
    return output


def _filters(weight: Array, num_channels: int, width: int) -> Array:
    """(C * m, 1, kh, kw) as (m, kh, kw, width, C): repeated for each pixel of a row, to multiply whole rows with."""
    taps = weight.reshape(num_channels, -1, 1, *weight.shape[2:]).transpose(1, 3, 4, 2, 0)
    return np.repeat(taps, width, axis=3)
