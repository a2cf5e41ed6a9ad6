"""Convolution, pooling and padding as functions of tensors, with PyTorch's arguments.

What PyTorch lets be one number or a sequence is made a tuple here; operations take tuples only.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import TypeAlias

from ddp_bp.engine.misuse import explained
from ddp_bp.engine.ops import convolution, pooling
from ddp_bp.engine.ops import padding as padding_ops
from ddp_bp.engine.tensor import Tensor, apply
from ddp_bp.errors import InputError

Sizes: TypeAlias = int | Sequence[int]


def sizes(name: str, argument: str, given: Sizes, count: int) -> tuple[int, ...]:
    """`given` for each of `count` axes. Raises InputError for another number of them, or for other things."""
    found = (given,) * count if isinstance(given, int) else tuple(given)
    if len(found) != count or not all(isinstance(size, int) for size in found):
        raise InputError(f"{name} takes {argument} as an integer or {count} of them and got {given!r}")
    return found


@explained
def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlates `input` (N, in, L) with `weight` (out, in / groups, k): (N, out, positions)."""
    return _conv(1, input, weight, bias, stride, padding, dilation, groups)


@explained
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlates `input` (N, in, H, W) with `weight` (out, in / groups, kh, kw): (N, out, *positions).

    `padding` is a size, one per axis, "valid" for none, or "same" for as many positions as pixels, at stride 1 only.
    """
    return _conv(2, input, weight, bias, stride, padding, dilation, groups)


def _conv(
    num_axes: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
) -> Tensor:
    operation = convolution.CONV1D if num_axes == 1 else convolution.CONV2D
    strides = sizes(operation.name, "stride", stride, num_axes)
    dilations = sizes(operation.name, "dilation", dilation, num_axes)
    if isinstance(padding, str):
        reaches = tuple(apart * (size - 1) for apart, size in zip(dilations, weight.shape[2:], strict=False))
        paddings = named_padding(operation.name, padding, strides, reaches)
    else:
        paddings = tuple((size, size) for size in sizes(operation.name, "padding", padding, num_axes))
    inputs = (input, weight) if bias is None else (input, weight, bias)
    return apply(operation, inputs, (strides, paddings, dilations, index(groups)))


def named_padding(
    name: str, padding: str, strides: tuple[int, ...], reaches: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Padding (before, after) for each axis; an odd number of pixels has the larger part after, as in PyTorch."""
    if padding == "valid":
        return ((0, 0),) * len(strides)
    if padding != "same":
        raise InputError(f"{name} takes a padding in pixels, 'valid' or 'same' and got {padding!r}")
    if any(stride != 1 for stride in strides):
        raise InputError(f"{name} got stride {strides} with padding='same', which takes stride 1")
    return tuple((reach // 2, reach - reach // 2) for reach in reaches)


@explained
def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    """The input gradient of conv2d as a layer: `input` (N, in, H, W), `weight` (in, out / groups, kh, kw).

    An image has (H - 1) * stride - 2 * padding + dilation * (kh - 1) + output_padding + 1 rows.
    """
    name = convolution.CONV_TRANSPOSE2D.name
    options = (
        sizes(name, "stride", stride, 2),
        sizes(name, "padding", padding, 2),
        sizes(name, "output_padding", output_padding, 2),
        sizes(name, "dilation", dilation, 2),
        index(groups),
    )
    inputs = (input, weight) if bias is None else (input, weight, bias)
    return apply(convolution.CONV_TRANSPOSE2D, inputs, options)


@explained
def max_pool1d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest element in each window of `input` (N, C, L); the stride is the window's size unless given."""
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode)


@explained
def max_pool2d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest element in each window of `input` (N, C, H, W); the stride is the window's size unless given."""
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode)


def _max_pool(
    num_axes: int,
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: bool,
) -> Tensor:
    operation = pooling.MAX_POOL1D if num_axes == 1 else pooling.MAX_POOL2D
    options = (
        sizes(operation.name, "kernel_size", kernel_size, num_axes),
        sizes(operation.name, "stride", kernel_size if stride is None else stride, num_axes),
        sizes(operation.name, "padding", padding, num_axes),
        sizes(operation.name, "dilation", dilation, num_axes),
        ceil_mode,
    )
    return apply(operation, (input,), options)


@explained
def avg_pool1d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of `input` (N, C, L), over its border of zeros as well unless told otherwise."""
    return _avg_pool(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


@explained
def avg_pool2d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window of `input` (N, C, H, W), or its sum divided by `divisor_override`."""
    return _avg_pool(2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _avg_pool(
    num_axes: int,
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Sizes,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    operation = pooling.AVG_POOL1D if num_axes == 1 else pooling.AVG_POOL2D
    options = (
        sizes(operation.name, "kernel_size", kernel_size, num_axes),
        sizes(operation.name, "stride", kernel_size if stride is None else stride, num_axes),
        sizes(operation.name, "padding", padding, num_axes),
        ceil_mode,
        count_include_pad,
        divisor,
    )
    return apply(operation, (input,), options)


@explained
def adaptive_avg_pool1d(input: Tensor, output_size: Sizes) -> Tensor:
    """The means of as many windows as asked for, which together cover `input` (N, C, L): (N, C, output_size)."""
    return apply(pooling.ADAPTIVE_AVG_POOL1D, (input,), (sizes("adaptive_avg_pool1d", "output_size", output_size, 1),))


@explained
def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
    """The means of as many windows as asked for, which together cover `input` (N, C, H, W). None keeps a size."""
    wanted = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    kept = [given if size is None else size for size, given in zip(wanted, input.shape[-2:], strict=False)]
    return apply(pooling.ADAPTIVE_AVG_POOL2D, (input,), (sizes("adaptive_avg_pool2d", "output_size", kept, 2),))


@explained
def zero_pad2d(input: Tensor, padding: Sizes) -> Tensor:
    """Zeros (left, right, top, bottom) around `input` (N, C, H, W); negative numbers cut pixels off."""
    return apply(padding_ops.ZERO_PAD2D, (input,), (sizes("zero_pad2d", "padding", padding, 4),))
