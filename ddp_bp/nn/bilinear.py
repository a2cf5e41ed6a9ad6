"""The bilinear layer."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ddp_bp.engine.tensor import Parameter, Tensor
from ddp_bp.errors import InputError
from ddp_bp.nn import functional, init
from ddp_bp.nn.module import Module


class Bilinear(Module):
    """(..., in1_features) and (..., in2_features) to (..., out_features): x1 A x2 + b for each output.

    `weight` is (out, in1, in2), `bias` (out,); both start uniform within 1 / sqrt(in1_features), as in PyTorch.
    """

    def __init__(
        self,
        in1_features: int,
        in2_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        if min(in1_features, in2_features, out_features) < 1:
            raise InputError(f"Bilinear takes sizes above 0 and got {in1_features}, {in2_features} and {out_features}")
        self.in1_features = in1_features
        self.in2_features = in2_features
        self.out_features = out_features
        self.weight = Parameter(np.empty((out_features, in1_features, in2_features), dtype))
        self.bias = Parameter(np.empty(out_features, dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.in1_features)
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        return functional.bilinear(input1, input2, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in1_features={self.in1_features}, in2_features={self.in2_features}, "
            f"out_features={self.out_features}, bias={self.bias is not None}"
        )
