"""Gradient clipping, after torch.nn.utils, and its parts for ranks that each hold a slice.

A rank takes `row_square_sums` of its slice of the gradient; with those of all ranks side by side, summed in an order
that does not depend on the slices, `clip_coefficient` says what each multiplies its slice by.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ddp_bp.engine.flat import FlatParameters
from ddp_bp.engine.ops.operation import Array
from ddp_bp.engine.tensor import Parameter
from ddp_bp.errors import EngineError, InputError
from ddp_bp.optim.rows import row_square_sums

Params = FlatParameters | Parameter | Iterable[Parameter]


def clip_grad_norm_(
    parameters: Params, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> float:
    """Scales the gradients down together if their norm is above `max_norm`; returns the norm that they had.

    `norm_type` is the p of the p-norm, and may be math.inf. Norms are computed in float64. With `error_if_nonfinite`,
    raises EngineError if the norm is not finite, and changes nothing.
    """
    if not norm_type > 0:
        raise InputError(f"clip_grad_norm_ takes a norm_type above 0 and got {norm_type}")
    gradients = _gradients(parameters)
    norm = _norm(gradients, norm_type)
    if error_if_nonfinite and not math.isfinite(norm):
        raise EngineError(
            f"clip_grad_norm_: the norm of the gradients is {norm}; error_if_nonfinite=False clips anyway"
        )
    coefficient = clip_coefficient(norm, max_norm)
    # Multiplying by 1 would change nothing but the time.
    if coefficient != 1.0:
        for gradient in gradients:
            gradient *= coefficient
    return norm


def clip_grad_value_(parameters: Params, clip_value: float) -> None:
    """Limits each element of the gradients to [-clip_value, clip_value]."""
    limit = _limit("clip_value", clip_value)
    for gradient in _gradients(parameters):
        clip_value_(gradient, limit)


def clip_coefficient(norm: float, max_norm: float) -> float:
    """What gradients of that norm are multiplied by: min(1, max_norm / (norm + 1e-6)), as in PyTorch; NaN for NaN."""
    coefficient = _limit("max_norm", max_norm) / (norm + 1e-6)
    return 1.0 if coefficient > 1.0 else coefficient


def clip_value_(gradient: Array, clip_value: float) -> None:
    """Limits each element of `gradient` (any shape) to [-clip_value, clip_value], in place."""
    np.clip(gradient, -clip_value, clip_value, out=gradient)


def _gradients(parameters: Params) -> list[Array]:
    """The gradients that there are; as one vector where all parameters of a vector are given as such."""
    if isinstance(parameters, FlatParameters):
        return [parameters.finish_gradient()]
    chosen = [parameters] if isinstance(parameters, Parameter) else parameters
    return [parameter.grad for parameter in chosen if parameter.grad is not None]


def _norm(gradients: list[Array], norm_type: float) -> float:
    if norm_type == 2.0:
        return math.sqrt(sum(float(row_square_sums(gradient.reshape(-1)).sum()) for gradient in gradients))
    sizes = [np.abs(gradient.astype(np.float64)) for gradient in gradients if gradient.size]
    if norm_type == math.inf:
        return max((float(size.max()) for size in sizes), default=0.0)
    return float(math.pow(sum(float((size**norm_type).sum()) for size in sizes), 1.0 / norm_type))


def _limit(name: str, value: Any) -> float:
    if not float(value) >= 0.0:
        raise InputError(f"gradient clipping takes a {name} of at least 0 and got {value}")
    return float(value)
