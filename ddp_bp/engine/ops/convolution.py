"""Convolutions, as products of the windows' contents with the weight, a few images at a time.

The gathered windows of a whole batch are many times as large as its images and would come from memory; those of a few
images stay in the cache. They are gathered again for the weight's gradient, which costs less than keeping them. The
input's gradient at stride 1 is itself a convolution, of the padded output gradient with the turned weight. Whatever is
cut into blocks is cut by shape alone, so the bits of a result depend on the shapes and values only.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ddp_bp.engine.ops.depthwise import (
    depthwise_convolve,
    depthwise_input_gradient,
    depthwise_weight_gradient,
)
from ddp_bp.engine.ops.flops import convolution_flops, transposed_convolution_flops
from ddp_bp.engine.ops.layout import channel_sums, channels_first, channels_last, for_rows, pixel_rows, row_blocks
from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation, describe
from ddp_bp.engine.ops.windows import Pair, Window, column_blocks, image_runs
from ddp_bp.errors import DtypeError, ShapeError


def convolve(images: Array, weight: Array, window: Window, groups: int, positions: Pair) -> Array:
    """(N, H, W, C) with a weight (O, C / groups, kh, kw) at the first `positions`: (N, *positions, O), contiguous."""
    if groups > 1 and weight.shape[1] == 1:
        return depthwise_convolve(images, weight, window, positions)
    output = np.empty((len(images), *positions, len(weight)), images.dtype)
    for channels, outputs in _groups(weight, groups):
        matrix = _matrix(weight[outputs])
        for (run, rows), columns in column_blocks(images[..., channels], window, positions):
            part = output[run, rows].reshape(-1, len(weight))[:, outputs]
            np.matmul(columns, matrix, out=part)
    return output


def weight_gradient(images: Array, gradient: Array, window: Window, groups: int, out: Array) -> None:
    """Writes the gradient of the weight (O, C / groups, kh, kw) into `out`."""
    if groups > 1 and out.shape[1] == 1:
        depthwise_weight_gradient(images, gradient, window, out)
        return
    positions = (gradient.shape[1], gradient.shape[2])
    num_outputs, per_group = out.shape[:2]
    for channels, outputs in _groups(out, groups):
        total = np.zeros((window.size[0] * window.size[1] * per_group, outputs.stop - outputs.start), out.dtype)
        product = np.empty_like(total)
        for (run, rows), columns in column_blocks(images[..., channels], window, positions):
            part = gradient[run, rows].reshape(-1, num_outputs)[:, outputs]
            total += np.matmul(columns.T, part, out=product)
        out[outputs] = total.reshape(*window.size, per_group, -1).transpose(3, 2, 0, 1)


def input_gradient(gradient: Array, weight: Array, window: Window, groups: int, extent: Pair) -> Array:
    """The gradient (N, *extent, C) of the images that `gradient` (N, *positions, O) was computed from."""
    if groups > 1 and weight.shape[1] == 1 and (window.stride != (1, 1) or len(weight) > groups):
        return depthwise_input_gradient(gradient, weight, window, extent, groups)
    if window.stride != (1, 1):
        return _scattered(gradient, weight, window, groups, extent)
    before = [window.reach(axis) - window.padding[axis][0] for axis in (0, 1)]
    after = [extent[axis] + window.reach(axis) - gradient.shape[1 + axis] - before[axis] for axis in (0, 1)]
    padding = ((before[0], after[0]), (before[1], after[1]))
    num_outputs, per_group, *size = weight.shape
    turned = weight.reshape(groups, num_outputs // groups, per_group, *size).swapaxes(1, 2)[..., ::-1, ::-1]
    turned = turned.reshape(groups * per_group, num_outputs // groups, *size)
    return convolve(gradient, turned, window._replace(padding=padding), groups, extent)


def _scattered(gradient: Array, weight: Array, window: Window, groups: int, extent: Pair) -> Array:
    """The input gradient for strides above 1: what each tap contributes is added to the pixels that the tap saw."""
    num_outputs, per_group = weight.shape[:2]
    num_images = len(gradient)
    positions = (gradient.shape[1], gradient.shape[2])
    (top, bottom), (left, right) = window.padding
    padded_shape = (extent[0] + top + bottom, extent[1] + left + right, per_group)
    output = np.empty((num_images, *extent, groups * per_group), gradient.dtype)
    taps = list(window.taps(positions))
    image_bytes = math.prod(positions) * len(taps) * per_group * gradient.itemsize
    for channels, outputs in _groups(weight, groups):
        matrix = np.ascontiguousarray(_matrix(weight[outputs]).T)
        for run in image_runs(num_images, image_bytes):
            rows = gradient[run].reshape(-1, num_outputs)[:, outputs]
            columns = np.matmul(rows, matrix).reshape(-1, *positions, *window.size, per_group)
            padded = np.zeros((len(columns), *padded_shape), gradient.dtype)
            for row, column, place in taps:
                padded[place] += columns[:, :, :, row, column]
            output[run, :, :, channels] = padded[:, top : top + extent[0], left : left + extent[1]]
    return output


def _add_bias(image: Array, bias: Array) -> None:
    rows, biases = pixel_rows(image), for_rows(bias, image)
    for block in row_blocks(*rows.shape):
        part = rows[block]
        part += biases[: len(part)]


def _groups(weight: Array, groups: int) -> list[tuple[slice, slice]]:
    """For each group, its input channels and its output channels."""
    num_out, num_in = len(weight) // groups, weight.shape[1]
    return [
        (slice(group * num_in, (group + 1) * num_in), slice(group * num_out, (group + 1) * num_out))
        for group in range(groups)
    ]


def _matrix(weight: Array) -> Array:
    """A weight (O, C, kh, kw) as (kh * kw * C, O), in the order of the window blocks."""
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(-1, len(weight))


class _Saved(NamedTuple):
    images: Array
    weight: Array
    window: Window
    groups: int
    num_axes: int
    input_shape: tuple[int, ...]
    has_bias: bool


def _window(size: tuple[int, ...], stride: Any, padding: Any, dilation: Any) -> Window:
    if len(size) == 2:
        return Window((size[0], size[1]), tuple(stride), tuple(dilation), (tuple(padding[0]), tuple(padding[1])))
    return Window((1, size[0]), (1, stride[0]), (1, dilation[0]), ((0, 0), tuple(padding[0])))


def _flat_weight(weight: Array) -> Array:
    """A weight (O, C, k) or (O, C, kh, kw) as (O, C, kh, kw)."""
    return weight[:, :, None] if weight.ndim == 3 else weight


def _check(name: str, num_axes: int, a: Array, weight: Array, biases: list[Array], groups: int) -> None:
    """Refuses what does not fit together. A transposed convolution's weight is (C, O / groups, kh, kw)."""
    spatial = ("L",) if num_axes == 1 else ("H", "W")
    window = ("k",) if num_axes == 1 else ("kh", "kw")
    transposed = name == "conv_transpose2d"
    layout = ("in", "out / groups") if transposed else ("out", "in / groups")
    expected = (
        f"it takes an input (N, in, {', '.join(spatial)}) or ({', '.join(('in', *spatial))}), a weight "
        f"({', '.join((*layout, *window))}) and perhaps a bias (out,), of one floating dtype"
    )
    got = f"{name} got an input of {describe(a)} with a weight of {describe(weight)}"
    if biases:
        got += f" and a bias of {describe(biases[0])}"
    if any(array.dtype != weight.dtype or array.dtype.kind != "f" for array in (a, weight, *biases)):
        raise DtypeError(f"{got}; {expected}")
    if weight.ndim != num_axes + 2 or a.ndim not in (num_axes + 1, num_axes + 2) or len(biases) > 1:
        raise ShapeError(f"{got}; {expected}")
    if groups < 1 or len(weight) % groups:
        raise ShapeError(f"{got} in {groups} groups; {expected}, with channels that the number of groups divides")
    num_in = a.shape[-num_axes - 1]
    wanted = len(weight) if transposed else weight.shape[1] * groups
    num_out = weight.shape[1] * groups if transposed else len(weight)
    if num_in != wanted or any(bias.shape != (num_out,) for bias in biases):
        raise ShapeError(f"{got} in {groups} group(s); {expected}: here {wanted} channels in and {num_out} out")
    if min(weight.shape) < 1:
        raise ShapeError(f"{got}; {expected}, with at least one channel and one tap")


def _check_window(name: str, window: Window) -> None:
    if min(*window.stride, *window.dilation) < 1:
        raise ShapeError(
            f"{name} got stride {window.stride} and dilation {window.dilation}; it takes strides and dilations above 0"
        )
    if min(*window.padding[0], *window.padding[1]) < 0:
        raise ShapeError(f"{name} got padding {window.padding}; it takes padding of 0 or more")


def _conv(name: str, num_axes: int, a: Array, weight: Array, *rest: Any) -> tuple[Array, Any]:
    *biases, stride, padding, dilation, groups = rest
    _check(name, num_axes, a, weight, biases, groups)
    window = _window(weight.shape[2:], stride, padding, dilation)
    _check_window(name, window)
    images = channels_last(a, num_axes)
    positions = window.positions(images.shape[1], images.shape[2])
    if min(positions) < 1:
        raise ShapeError(
            f"{name} got an input of {describe(a)} with a weight of {describe(weight)}, dilation {dilation} and "
            f"padding {padding}; it takes a window that fits into the padded input"
        )
    output = convolve(images, _flat_weight(weight), window, groups, positions)
    if biases:
        _add_bias(output, biases[0])
    saved = _Saved(images, weight, window, groups, num_axes, a.shape, bool(biases))
    return channels_first(output, num_axes, a.ndim), saved


def _conv_vjp(gradient: Array, saved: _Saved, needs: Needs, out: Any) -> Gradients:
    images, weight, window, groups, num_axes, shape, has_bias = saved
    rows = channels_last(gradient, num_axes)
    grad_a = grad_weight = None
    if needs[0]:
        image = input_gradient(rows, _flat_weight(weight), window, groups, (images.shape[1], images.shape[2]))
        grad_a = channels_first(image, num_axes, len(shape))
    if needs[1]:
        grad_weight = np.empty(weight.shape, weight.dtype) if out[0] is None else out[0]
        weight_gradient(images, rows, window, groups, _flat_weight(grad_weight))
    if not has_bias:
        return grad_a, grad_weight
    return grad_a, grad_weight, channel_sums(rows, out[1]) if needs[2] else None


def _conv_transpose(a: Array, weight: Array, *rest: Any) -> tuple[Array, Any]:
    *biases, stride, padding, output_padding, dilation, groups = rest
    name = "conv_transpose2d"
    _check(name, 2, a, weight, biases, groups)
    window = _window(weight.shape[2:], stride, [(pad, pad) for pad in padding], dilation)
    _check_window(name, window)
    images = channels_last(a, 2)
    height, width = (
        (images.shape[1 + axis] - 1) * stride[axis] - 2 * padding[axis] + window.reach(axis) + output_padding[axis] + 1
        for axis in (0, 1)
    )
    if min(images.shape[1:3]) < 1 or min(height, width) < 1:
        raise ShapeError(
            f"{name} got an input of {describe(a)}, which would give {height} x {width} pixels; it takes an input of "
            "one pixel or more and a padding that leaves one"
        )
    if not all(0 <= extra < max(stride[axis], dilation[axis]) for axis, extra in enumerate(output_padding)):
        raise ShapeError(
            f"{name} got output_padding {output_padding}; it takes less than the larger of stride {stride} and "
            f"dilation {dilation}, which tells apart the sizes that convolve to the same one"
        )
    output = input_gradient(images, weight, window, groups, (height, width))
    if biases:
        _add_bias(output, biases[0])
    return channels_first(output, 2, a.ndim), _Saved(images, weight, window, groups, 2, a.shape, bool(biases))


def _conv_transpose_vjp(gradient: Array, saved: _Saved, needs: Needs, out: Any) -> Gradients:
    images, weight, window, groups, _, shape, has_bias = saved
    rows = channels_last(gradient, 2)
    grad_a = grad_weight = None
    if needs[0]:
        grad_a = channels_first(
            convolve(rows, weight, window, groups, (images.shape[1], images.shape[2])), 2, len(shape)
        )
    if needs[1]:
        grad_weight = np.empty(weight.shape, weight.dtype) if out[0] is None else out[0]
        weight_gradient(rows, images, window, groups, grad_weight)
    if not has_bias:
        return grad_a, grad_weight
    return grad_a, grad_weight, channel_sums(rows, out[1]) if needs[2] else None


CONV1D = Operation(
    "conv1d",
    partial(_conv, "conv1d", 1),
    _conv_vjp,
    "an input, a weight, perhaps a bias, and stride, padding, dilation and groups",
    reads=(0, 1),
    writes=(1, 2),
    flops=convolution_flops,
)
CONV2D = Operation(
    "conv2d",
    partial(_conv, "conv2d", 2),
    _conv_vjp,
    "an input, a weight, perhaps a bias, and stride, padding, dilation and groups",
    reads=(0, 1),
    writes=(1, 2),
    flops=convolution_flops,
)
CONV_TRANSPOSE2D = Operation(
    "conv_transpose2d",
    _conv_transpose,
    _conv_transpose_vjp,
    "an input, a weight, perhaps a bias, and stride, padding, output_padding, dilation and groups",
    reads=(0, 1),
    writes=(1, 2),
    flops=transposed_convolution_flops,
)

OPERATIONS = (CONV1D, CONV2D, CONV_TRANSPOSE2D)
