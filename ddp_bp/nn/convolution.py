"""Convolution layers."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ddp_bp.engine.functional_spatial import Sizes, named_padding, sizes
from ddp_bp.engine.tensor import Parameter, Tensor
from ddp_bp.errors import InputError
from ddp_bp.nn import functional, init
from ddp_bp.nn.module import Module


class _Conv(Module):
    """What the layers share: arguments, parameters, their start and their text."""

    num_axes = 2
    is_transposed = False

    def _set_up(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes,
        padding: Sizes | str,
        output_padding: Sizes,
        dilation: Sizes,
        groups: int,
        bias: bool,
        dtype: npt.DTypeLike,
    ) -> None:
        name, count = type(self).__name__, self.num_axes
        if groups < 1 or in_channels < 1 or out_channels < 1 or in_channels % groups or out_channels % groups:
            raise InputError(
                f"{name} takes channels above 0 that the number of groups divides, and got in_channels {in_channels}, "
                f"out_channels {out_channels} and groups {groups}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = sizes(name, "kernel_size", kernel_size, count)
        self.stride = sizes(name, "stride", stride, count)
        self.padding = padding if isinstance(padding, str) else sizes(name, "padding", padding, count)
        self.output_padding = sizes(name, "output_padding", output_padding, count)
        self.dilation = sizes(name, "dilation", dilation, count)
        self.groups = groups
        if min(*self.kernel_size, *self.stride, *self.dilation) < 1:
            raise InputError(f"{name} takes kernel_size, stride and dilation above 0")
        if isinstance(padding, str):
            named_padding(name, padding, self.stride, self.kernel_size)
        rows = (in_channels, out_channels) if self.is_transposed else (out_channels, in_channels)
        self.weight = Parameter(np.empty((rows[0], rows[1] // groups, *self.kernel_size), dtype))
        self.bias = Parameter(np.empty(out_channels, dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.weight.shape[1:]))
            init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        zeros, ones = (0,) * self.num_axes, (1,) * self.num_axes
        if self.padding != zeros:
            text += f", padding={self.padding}"
        if self.dilation != ones:
            text += f", dilation={self.dilation}"
        if self.output_padding != zeros:
            text += f", output_padding={self.output_padding}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text if self.bias is not None else text + ", bias=False"


class Conv1d(_Conv):
    """(N, in_channels, L) to (N, out_channels, positions): cross-correlation with `weight` (out, in / groups, k).

    `padding` is a number of zeros at either end, "valid" or "same". `weight` and `bias` (out,) start uniform within
    1 / sqrt(in / groups * k), as in PyTorch.
    """

    num_axes = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self._set_up(in_channels, out_channels, kernel_size, stride, padding, 0, dilation, groups, bias, dtype)

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv1d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Conv2d(_Conv):
    """(N, in_channels, H, W) to (N, out_channels, *positions), by `weight` (out, in / groups, kh, kw).

    `padding` is a number of zeros at each side, "valid" or "same". `groups` equal to `in_channels` makes it depthwise.
    `weight` and `bias` (out,) start uniform within 1 / sqrt(in / groups * kh * kw), as in PyTorch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self._set_up(in_channels, out_channels, kernel_size, stride, padding, 0, dilation, groups, bias, dtype)

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ConvTranspose2d(_Conv):
    """(N, in_channels, H, W) to (N, out_channels, ...): the input gradient of a Conv2d, as a layer.

    `weight` is (in, out / groups, kh, kw); `output_padding` rows and columns are added at the end, to choose among the
    sizes that a strided convolution maps to the same one.
    """

    is_transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self._set_up(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, dilation, groups, bias, dtype
        )

    def forward(self, input: Tensor) -> Tensor:
        assert not isinstance(self.padding, str)
        return functional.conv_transpose2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
        )
