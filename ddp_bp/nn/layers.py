"""Linear maps and the modules that go between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ddp_bp.engine.tensor import Parameter, Tensor
from ddp_bp.errors import InputError, ShapeError
from ddp_bp.nn import functional, init
from ddp_bp.nn.module import Module


class Linear(Module):
    """(..., in_features) to (..., out_features): input times the transpose of `weight`, plus `bias`.

    `weight` is (out_features, in_features), `bias` (out_features,); both start uniform within
    1 / sqrt(in_features), as in PyTorch.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, dtype: npt.DTypeLike = np.float32
    ) -> None:
        if in_features < 0 or out_features < 0:
            raise InputError(f"Linear takes non-negative sizes and got {in_features} and {out_features}")
        self.in_features = in_features
        self.out_features = out_features
        self.weight = Parameter(np.empty((out_features, in_features), dtype))
        self.bias = Parameter(np.empty(out_features, dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        has_bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={has_bias}"


class Dropout(Module):
    """In training, sets elements to 0 with probability `p` and multiplies the others by 1 / (1 - p)."""

    def __init__(self, p: float = 0.5) -> None:
        if not 0.0 <= p <= 1.0:
            raise InputError(f"Dropout takes a probability p in [0, 1] and got {p}")
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout(input, self.p, self.training, stream_key=self.stream_key)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Flatten(Module):
    """Joins the axes from `start_dim` to `end_dim` into one; by default all but the first."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Tensor) -> Tensor:
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Splits axis `dim` into axes of `unflattened_size`, one of which may be -1."""

    def __init__(self, dim: int, unflattened_size: Sequence[int]) -> None:
        self.dim = dim
        self.unflattened_size = tuple(unflattened_size)

    def forward(self, input: Tensor) -> Tensor:
        if not -input.ndim <= self.dim < input.ndim:
            raise ShapeError(f"Unflatten got axis {self.dim} for shape {input.shape}")
        axis = self.dim % input.ndim
        sizes = list(self.unflattened_size)
        if sizes.count(-1) == 1:
            others = -math.prod(sizes)
            sizes[sizes.index(-1)] = input.shape[axis] // others if others > 0 else 0
        if math.prod(sizes) != input.shape[axis] or min(sizes, default=-1) < 0:
            raise ShapeError(
                f"Unflatten got axis {self.dim} of shape {input.shape} for sizes {self.unflattened_size}; it takes "
                f"sizes with the product {input.shape[axis]}, one of which may be -1"
            )
        return input.reshape(*input.shape[:axis], *sizes, *input.shape[axis + 1 :])

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"


class Identity(Module):
    """Returns its input."""

    def forward(self, input: Tensor) -> Tensor:
        return input
