"""Reductions with more to them than a ufunc: variance, log-sum-exp, product; and the running sum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation, floating
from ddp_bp.engine.ops.reduction import Axes, kept_shape, reduce_by

_AXES = "an axis, several different axes, or None for all of them, each in [-ndim, ndim)"


def _squeezed(reduced: Array, axis: Axes, keepdims: bool) -> Array:
    """`reduced`, whose reduced axes are kept, without them unless `keepdims`."""
    return reduced if keepdims else np.squeeze(reduced, axis=axis)


def _centred(a: Array, axis: Axes, correction: float) -> tuple[Array, Array, float]:
    """`a` less its mean, the variance with the reduced axes kept, and the number that the variance divides by."""
    if a.dtype.kind != "f":
        raise TypeError("the variance of integers or booleans is not an integer: cast to a floating dtype first")
    total = np.asarray(np.add.reduce(a, axis=axis, keepdims=True))
    num_reduced = a.size // total.size if total.size else 0
    divisor = max(float(num_reduced) - correction, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        total /= num_reduced
        centred = np.asarray(a - total)
        variance = np.asarray(np.add.reduce(np.square(centred), axis=axis, keepdims=True))
        variance /= divisor
    return centred, variance, divisor


def _var(a: Array, axis: Axes, keepdims: bool, correction: float) -> tuple[Array, Any]:
    centred, variance, divisor = _centred(a, axis, correction)
    return _squeezed(variance, axis, keepdims), (centred, variance.shape, divisor)


def _var_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    centred, shape, divisor = saved
    with np.errstate(invalid="ignore", divide="ignore"):
        return (centred * (gradient.reshape(shape) * np.divide(2.0, divisor)),)


def _std(a: Array, axis: Axes, keepdims: bool, correction: float) -> tuple[Array, Any]:
    centred, deviation, divisor = _centred(a, axis, correction)
    np.sqrt(deviation, out=deviation)
    return _squeezed(deviation, axis, keepdims), (centred, deviation.copy(), divisor)


def _std_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    centred, deviation, divisor = saved
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.asarray(gradient.reshape(deviation.shape) / (deviation * divisor))
    # Equal elements have no direction in which the deviation shrinks: 0 rather than 0 / 0, as in PyTorch.
    slope[deviation == 0] = 0
    return (centred * slope,)


def _logsumexp(a: Array, axis: Axes, keepdims: bool) -> tuple[Array, Any]:
    a = floating(a)
    largest = np.asarray(np.maximum.reduce(a, axis=axis, keepdims=True, initial=-np.inf))
    # Infinite elements decide the result alone; subtracting them would give NaN.
    largest[np.isinf(largest)] = 0
    exponentials = np.asarray(a - largest)
    np.exp(exponentials, out=exponentials)
    totals = np.asarray(np.add.reduce(exponentials, axis=axis, keepdims=True))
    with np.errstate(divide="ignore"):
        output = np.log(totals)
        output += largest
    return _squeezed(output, axis, keepdims), (exponentials, totals)


def _logsumexp_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    exponentials, totals = saved
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.asarray(gradient.reshape(totals.shape) / totals)
        scale[totals == 0] = 0
        return (exponentials * scale,)


def _prod(a: Array, axis: Axes, keepdims: bool) -> tuple[Array, Any]:
    return reduce_by(np.multiply, a, axis, keepdims), (a, axis)


def _prod_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    # The product of all others is that of those before times that of those after, which needs no division by zeros.
    a, axis = saved
    shape = kept_shape(a.shape, axis)
    axes = (
        range(a.ndim)
        if axis is None or not a.ndim
        else [i % a.ndim for i in (axis if isinstance(axis, tuple) else (axis,))]
    )
    kept = [i for i in range(a.ndim) if i not in set(axes)]
    moved = a.transpose(*kept, *axes)
    rows = moved.reshape(math.prod(moved.shape[: len(kept)]), math.prod(moved.shape[len(kept) :]))
    others, after = np.ones_like(rows, order="C"), np.ones_like(rows, order="C")
    if rows.shape[1] > 1:
        np.multiply.accumulate(rows[:, :-1], axis=1, out=others[:, 1:])
        np.multiply.accumulate(rows[:, :0:-1], axis=1, out=after[:, -2::-1])
    others *= after
    result = others.reshape(moved.shape).transpose(np.argsort([*kept, *axes]))
    return (result * gradient.reshape(shape),)


def _cumsum(a: Array, axis: int) -> tuple[Array, Any]:
    if axis is None:
        raise TypeError("there is no axis")
    # NumPy makes one element of a scalar.
    return np.cumsum(a, axis=axis).reshape(a.shape), axis


def _cumsum_vjp(gradient: Array, axis: int, needs: Needs) -> Gradients:  # noqa: ARG001
    if not gradient.ndim:
        return (gradient,)
    return (np.flip(np.cumsum(np.flip(gradient, axis), axis=axis), axis),)


VAR = Operation("var", _var, _var_vjp, f"floats, {_AXES}, keepdims, and what to subtract from the number of elements")
STD = Operation("std", _std, _std_vjp, f"floats, {_AXES}, keepdims, and what to subtract from the number of elements")
LOGSUMEXP = Operation("logsumexp", _logsumexp, _logsumexp_vjp, f"one array, {_AXES}, and keepdims")
PROD = Operation("prod", _prod, _prod_vjp, f"one array, {_AXES}, and keepdims", reads=(0,))
CUMSUM = Operation("cumsum", _cumsum, _cumsum_vjp, "one array and one axis in [-ndim, ndim)")

OPERATIONS = (VAR, STD, LOGSUMEXP, PROD, CUMSUM)
