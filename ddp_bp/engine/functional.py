"""The operations as functions of tensors, for those that are no method of Tensor."""

from __future__ import annotations

from collections.abc import Sequence

from ddp_bp.engine import random
from ddp_bp.engine.methods import Operand
from ddp_bp.engine.misuse import explained
from ddp_bp.engine.ops import noise, product, shaping
from ddp_bp.engine.ops.operation import Array
from ddp_bp.engine.tensor import Tensor, apply, tensor
from ddp_bp.errors import InputError, ShapeError

REDUCTIONS = ("none", "mean", "sum")


def as_tensor(value: Tensor | Array) -> Tensor:
    """`value`, or a tensor on the memory of a NumPy array."""
    return value if isinstance(value, Tensor) else Tensor(value)


@explained
def maximum(input: Tensor, other: Operand) -> Tensor:
    """The larger of each pair; equal ones share the gradient."""
    return input.maximum(other)


@explained
def minimum(input: Tensor, other: Operand) -> Tensor:
    """The smaller of each pair; equal ones share the gradient."""
    return input.minimum(other)


@explained
def where(condition: Tensor, input: Operand, other: Operand) -> Tensor:
    """`input` where the boolean `condition` holds, `other` elsewhere; the three broadcast together.

    A number takes the dtype of the tensor beside it, unless that would cut it.
    """
    if not isinstance(input, Tensor):
        input = (other if isinstance(other, Tensor) else tensor(other))._beside(input)
    return input.where(condition, other)


@explained
def concatenate(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Joins tensors that are alike in all axes but `dim`."""
    if not tensors:
        raise ShapeError("concatenate got no tensors; it takes one or more")
    return apply(shaping.CONCATENATE, tuple(tensors), (dim,))


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`input` (..., in) times the transpose of `weight` (out, in), plus `bias` (out,): (..., out)."""
    return apply(product.LINEAR, (input, weight) if bias is None else (input, weight, bias))


@explained
def dropout(input: Tensor, p: float = 0.5, training: bool = True, *, stream_key: int = 0) -> Tensor:
    """Sets elements to 0 with probability `p` and multiplies the others by 1 / (1 - p), in training only.

    Draws once under `stream_key`; see `ddp_bp.engine.random`.
    """
    if not 0.0 <= p <= 1.0:
        raise InputError(f"dropout takes a probability p in [0, 1] and got {p}")
    if not training or p == 0.0:
        return input
    return apply(noise.DROPOUT, (input, Tensor(random.draw_kept(input.shape, p, stream_key))), (p,))


def check_reduction(name: str, reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise InputError(f"{name} takes a reduction among {', '.join(REDUCTIONS)} and got {reduction!r}")
