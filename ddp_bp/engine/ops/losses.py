"""Softmax and the losses that are computed in one piece for precision and speed.

A loss's `reduction` is "none", "sum" or "mean"; the mean divides by the number of elements that the sum adds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation, describe, floating
from ddp_bp.errors import DtypeError, ShapeError


def _softmax(a: Array, axis: int) -> tuple[Array, Any]:
    a = floating(a)
    output = a - np.maximum.reduce(a, axis=axis, keepdims=True)
    np.exp(output, out=output)
    output /= np.add.reduce(output, axis=axis, keepdims=True)
    return output, (output, axis)


def _softmax_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    output, axis = saved
    result = gradient * output
    result -= output * np.add.reduce(result, axis=axis, keepdims=True)
    return (result,)


def _log_softmax(a: Array, axis: int) -> tuple[Array, Any]:
    a = floating(a)
    output = a - np.maximum.reduce(a, axis=axis, keepdims=True)
    output -= np.log(np.add.reduce(np.exp(output), axis=axis, keepdims=True))
    return output, (output, axis)


def _log_softmax_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    output, axis = saved
    result = np.exp(output)
    result *= np.add.reduce(gradient, axis=axis, keepdims=True)
    np.subtract(gradient, result, out=result)
    return (result,)


def _class_indices(logits: Array, target: Array) -> Array:
    """`target` as (N,) of native integers, after checking it against `logits` (N, C)."""
    if logits.ndim != 2 or target.shape != logits.shape[:1]:
        raise ShapeError(
            f"cross_entropy got logits of {describe(logits)} with a target of {describe(target)}; "
            "it takes logits (N, C) with a target (N,) of class numbers"
        )
    if target.dtype.kind not in "iu" or logits.dtype.kind != "f":
        raise DtypeError(
            f"cross_entropy got logits of {logits.dtype} with a target of {target.dtype}; "
            "it takes floating logits with a target of integer class numbers"
        )
    indices = target.astype(np.intp)
    # Seen as unsigned, a negative number is large: one comparison checks both ends.
    if indices.size and np.maximum.reduce(indices.view(np.uintp)) >= logits.shape[1]:
        raise ShapeError(
            f"cross_entropy got class numbers from {indices.min()} to {indices.max()} with logits of "
            f"{describe(logits)}; it takes class numbers in [0, {logits.shape[1]})"
        )
    return indices


def _cross_entropy(logits: Array, target: Array, reduction: str) -> tuple[Array, Any]:
    indices = _class_indices(logits, target)
    num_rows = len(indices)
    rows = np.arange(num_rows)
    if logits.size == 0:
        losses = np.zeros(num_rows, logits.dtype)
        exponentials = np.zeros_like(logits)
        totals = np.ones((num_rows, 1), logits.dtype)
    else:
        exponentials = logits - np.maximum.reduce(logits, axis=1, keepdims=True)
        picked = exponentials[rows, indices]
        np.exp(exponentials, out=exponentials)
        totals = np.add.reduce(exponentials, axis=1, keepdims=True)
        losses = np.log(totals[:, 0])
        losses -= picked
    saved = (exponentials, totals, rows, indices, reduction)
    return _reduce(losses, reduction), saved


def _cross_entropy_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    exponentials, totals, rows, indices, reduction = saved
    result = exponentials / totals
    result[rows, indices] -= 1
    if reduction == "none":
        gradient = gradient[:, None]
    elif reduction == "mean":
        gradient = gradient / max(len(rows), 1)
    result *= gradient
    return result, None


def _reduce(losses: Array, reduction: str) -> Array:
    if reduction == "none":
        return losses
    total: Array = np.asarray(np.add.reduce(losses, axis=None))
    if reduction == "sum":
        return total
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.divide(total, losses.size))


def _mse(output: Array, target: Array, reduction: str) -> tuple[Array, Any]:
    if output.shape != target.shape:
        raise ShapeError(
            f"mse_loss got an output of {describe(output)} with a target of {describe(target)}; it takes equal "
            "shapes, since broadcasting here would compare every element with every other"
        )
    if output.dtype.kind != "f" or target.dtype.kind != "f":
        raise DtypeError(f"mse_loss got {output.dtype} with a target of {target.dtype}; it takes floating dtypes")
    difference = np.asarray(output - target)
    return _reduce(np.square(difference), reduction), (difference, reduction)


def _mse_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    difference, reduction = saved
    scale = 2.0 / max(difference.size, 1) if reduction == "mean" else 2.0
    result = difference * (gradient * scale)
    return result if needs[0] else None, np.negative(result) if needs[1] else None


_REDUCTION = "and a reduction among 'none', 'sum' and 'mean'"

SOFTMAX = Operation(
    "softmax", _softmax, _softmax_vjp, "floats, not empty along one axis in [-ndim, ndim)", reads_output=True
)
LOG_SOFTMAX = Operation(
    "log_softmax",
    _log_softmax,
    _log_softmax_vjp,
    "floats, not empty along one axis in [-ndim, ndim)",
    reads_output=True,
)
CROSS_ENTROPY = Operation(
    "cross_entropy",
    _cross_entropy,
    _cross_entropy_vjp,
    f"logits (N, C), a target (N,) of class numbers {_REDUCTION}",
)
MSE_LOSS = Operation("mse_loss", _mse, _mse_vjp, f"an output and a target of one shape {_REDUCTION}")

OPERATIONS = (SOFTMAX, LOG_SOFTMAX, CROSS_ENTROPY, MSE_LOSS)
