"""Softmax, and the losses that compare an output with a target element by element.

A loss's `reduction` is "none", "sum" or "mean"; the mean divides by the number of elements that the sum adds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ddp_bp.engine.ops.exponentials import exponentials, row_maxima
from ddp_bp.engine.ops.layout import row_blocks
from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation, describe, floating
from ddp_bp.errors import DtypeError, ShapeError


def _rows(a: Array, axis: int) -> tuple[Array, tuple[int, ...]]:
    """`a` with `axis` moved to the end as contiguous rows, and the shape before it became rows."""
    moved = a if axis == a.ndim - 1 or (axis == -1 and a.ndim) else np.moveaxis(a, axis, -1)
    shape = moved.shape
    return np.ascontiguousarray(moved).reshape(math.prod(shape[:-1]), shape[-1]), shape


def _unrows(rows: Array, shape: tuple[int, ...], axis: int) -> Array:
    result = rows.reshape(shape)
    return result if axis in (-1, len(shape) - 1) else np.moveaxis(result, -1, axis)


def _softmax(a: Array, axis: int) -> tuple[Array, Any]:
    rows, shape = _rows(floating(a), axis)
    output = np.empty_like(rows)
    with np.errstate(all="ignore"):
        for block in row_blocks(*rows.shape):
            shares, totals = exponentials(rows[block])
            np.multiply(shares, np.divide(1, totals, out=totals)[:, None], out=output[block])
    return _unrows(output, shape, axis), (output, shape, axis)


def _softmax_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    output, shape, axis = saved
    incoming, _ = _rows(gradient, axis)
    result = np.empty_like(output)
    for block in row_blocks(*output.shape):
        part, shares = result[block], output[block]
        np.subtract(incoming[block], np.vecdot(incoming[block], shares)[:, None], out=part)
        part *= shares
    return (_unrows(result, shape, axis),)


def _log_softmax(a: Array, axis: int) -> tuple[Array, Any]:
    rows, shape = _rows(floating(a), axis)
    output = np.empty_like(rows)
    ones = np.ones(shape[-1], rows.dtype)
    for block in row_blocks(*rows.shape) if rows.size else ():
        part = np.subtract(rows[block], row_maxima(rows[block])[:, None], out=output[block])
        part -= np.log(np.exp(part).dot(ones))[:, None]
    return _unrows(output, shape, axis), (output, shape, axis)


def _log_softmax_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    output, shape, axis = saved
    incoming, _ = _rows(gradient, axis)
    result = np.empty_like(output)
    ones = np.ones(shape[-1], output.dtype)
    for block in row_blocks(*output.shape):
        part = np.exp(output[block], out=result[block])
        part *= incoming[block].dot(ones)[:, None]
        np.subtract(incoming[block], part, out=part)
    return (_unrows(result, shape, axis),)


def reduced(losses: Array, reduction: str, count: float | None = None) -> Array:
    """`losses`, their sum, or their mean, which divides by `count` or else by the number of losses."""
    if reduction == "none":
        return losses
    total: Array = np.asarray(np.add.reduce(losses, axis=None))
    if reduction == "sum":
        return total
    count = losses.size if count is None else count
    return np.asarray(total / count) if count else np.full((), np.nan, total.dtype)


def of_each(gradient: Array, reduction: str, count: float) -> Array:
    """The gradient of each loss, or one for all of them, from that of what `reduced` made of them."""
    return np.asarray(gradient / count) if reduction == "mean" and count else gradient


def check_alike(name: str, output: Array, target: Array) -> None:
    """Raises ShapeError or DtypeError unless both are floating and of one shape."""
    if output.shape != target.shape:
        raise ShapeError(
            f"{name} got an output of {describe(output)} with a target of {describe(target)}; it takes equal "
            "shapes, since broadcasting here would compare every element with every other"
        )
    if output.dtype.kind != "f" or target.dtype.kind != "f":
        raise DtypeError(f"{name} got {output.dtype} with a target of {target.dtype}; it takes floating dtypes")


def _both(gradient: Array, needs: Needs) -> Gradients:
    """The gradients of an output and a target whose difference has `gradient`."""
    return gradient if needs[0] else None, np.negative(gradient) if needs[1] else None


def _mse(output: Array, target: Array, reduction: str) -> tuple[Array, Any]:
    check_alike("mse_loss", output, target)
    difference = np.asarray(output - target)
    return reduced(np.square(difference), reduction), (difference, reduction)


def _mse_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    difference, reduction = saved
    scale = 2.0 / max(difference.size, 1) if reduction == "mean" else 2.0
    return _both(difference * (gradient * scale), needs)


def _l1(output: Array, target: Array, reduction: str) -> tuple[Array, Any]:
    check_alike("l1_loss", output, target)
    difference = np.asarray(output - target)
    return reduced(np.abs(difference), reduction), (difference, reduction)


def _l1_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    difference, reduction = saved
    return _both(np.sign(difference) * of_each(gradient, reduction, difference.size), needs)


def _huber_of(difference: Array, delta: float) -> Array:
    """Half the square up to `delta`, and the tangent from there."""
    size = np.abs(difference)
    bounded = np.asarray(np.minimum(size, delta))
    losses = np.asarray(bounded * -0.5)
    losses += size
    losses *= bounded
    return losses


def _huber(output: Array, target: Array, reduction: str, delta: float) -> tuple[Array, Any]:
    check_alike("huber_loss", output, target)
    difference = np.asarray(output - target)
    return reduced(_huber_of(difference, delta), reduction), (difference, reduction, delta)


def _huber_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    difference, reduction, delta = saved
    slope = np.clip(difference, -delta, delta)
    return _both(slope * of_each(gradient, reduction, difference.size), needs)


def _smooth_l1(output: Array, target: Array, reduction: str, beta: float) -> tuple[Array, Any]:
    check_alike("smooth_l1_loss", output, target)
    difference = np.asarray(output - target)
    losses = _huber_of(difference, beta) / beta if beta else np.abs(difference)
    return reduced(np.asarray(losses), reduction), (difference, reduction, beta)


def _smooth_l1_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    difference, reduction, beta = saved
    slope = np.clip(difference / beta, -1, 1) if beta else np.sign(difference)
    return _both(slope * of_each(gradient, reduction, difference.size), needs)


REDUCTION = "and a reduction among 'none', 'sum' and 'mean'"

SOFTMAX = Operation("softmax", _softmax, _softmax_vjp, "floats and one axis in [-ndim, ndim)", reads_output=True)
LOG_SOFTMAX = Operation(
    "log_softmax", _log_softmax, _log_softmax_vjp, "floats and one axis in [-ndim, ndim)", reads_output=True
)
MSE_LOSS = Operation("mse_loss", _mse, _mse_vjp, f"an output and a target of one shape {REDUCTION}")
L1_LOSS = Operation("l1_loss", _l1, _l1_vjp, f"an output and a target of one shape {REDUCTION}")
HUBER_LOSS = Operation("huber_loss", _huber, _huber_vjp, f"an output and a target of one shape {REDUCTION}")
SMOOTH_L1_LOSS = Operation(
    "smooth_l1_loss", _smooth_l1, _smooth_l1_vjp, f"an output and a target of one shape {REDUCTION}"
)

OPERATIONS = (SOFTMAX, LOG_SOFTMAX, MSE_LOSS, L1_LOSS, HUBER_LOSS, SMOOTH_L1_LOSS)
