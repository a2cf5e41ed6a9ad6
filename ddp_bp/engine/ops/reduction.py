"""Sums, means and extreme values over axes."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation

Axes: TypeAlias = int | tuple[int, ...] | None

_EXPECTS = "one array and an axis, several different axes, or None for all of them, each in [-ndim, ndim)"


def kept_shape(shape: tuple[int, ...], axis: Axes) -> tuple[int, ...]:
    """`shape` with the reduced axes kept at size 1."""
    if axis is None:
        return (1,) * len(shape)
    axes = {a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))} if shape else set()
    return tuple(1 if position in axes else size for position, size in enumerate(shape))


def reduce_by(ufunc: Any, a: Array, axis: Axes, keepdims: bool) -> Array:
    return np.asarray(ufunc.reduce(a, axis=axis, keepdims=keepdims))


def _spread(gradient: Array, shape: tuple[int, ...], axis: Axes) -> Array:
    return np.broadcast_to(gradient.reshape(kept_shape(shape, axis)), shape)


def _sum(a: Array, axis: Axes, keepdims: bool) -> tuple[Array, Any]:
    return reduce_by(np.add, a, axis, keepdims), (a.shape, axis)


def _sum_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    shape, axis = saved
    return (_spread(gradient, shape, axis),)


def _mean(a: Array, axis: Axes, keepdims: bool) -> tuple[Array, Any]:
    if a.dtype.kind != "f":
        raise TypeError("the mean of integers or booleans is not an integer: cast to a floating dtype first")
    output = reduce_by(np.add, a, axis, keepdims)
    num_averaged = a.size // output.size if output.size else 0
    with np.errstate(invalid="ignore", divide="ignore"):
        np.divide(output, num_averaged, out=output)
    return output, (a.shape, axis, num_averaged)


def _mean_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    shape, axis, num_averaged = saved
    return (_spread(gradient / max(num_averaged, 1), shape, axis),)


def _amax(a: Array, axis: Axes, keepdims: bool) -> tuple[Array, Any]:
    output = reduce_by(np.maximum, a, axis, keepdims)
    return output, (a, output, axis)


def _amin(a: Array, axis: Axes, keepdims: bool) -> tuple[Array, Any]:
    output = reduce_by(np.minimum, a, axis, keepdims)
    return output, (a, output, axis)


def _extreme_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    a, output, axis = saved
    shape = kept_shape(a.shape, axis)
    # Equal extremes share the gradient, as in torch.amax.
    attained = (a == np.reshape(output, shape)).astype(a.dtype)
    attained /= reduce_by(np.add, attained, axis, True)
    attained *= gradient.reshape(shape)
    return (attained,)


def _argmax(a: Array, axis: int | None, keepdims: bool) -> tuple[Array, Any]:
    return np.argmax(a, axis=axis, keepdims=keepdims), None


def _argmin(a: Array, axis: int | None, keepdims: bool) -> tuple[Array, Any]:
    return np.argmin(a, axis=axis, keepdims=keepdims), None


def _any(a: Array, axis: Axes, keepdims: bool) -> tuple[Array, Any]:
    return reduce_by(np.logical_or, a, axis, keepdims), None


def _all(a: Array, axis: Axes, keepdims: bool) -> tuple[Array, Any]:
    return reduce_by(np.logical_and, a, axis, keepdims), None


SUM = Operation("sum", _sum, _sum_vjp, _EXPECTS)
MEAN = Operation("mean", _mean, _mean_vjp, _EXPECTS + ", of a floating dtype")
AMAX = Operation("amax", _amax, _extreme_vjp, _EXPECTS + ", not empty", reads=(0,), reads_output=True)
AMIN = Operation("amin", _amin, _extreme_vjp, _EXPECTS + ", not empty", reads=(0,), reads_output=True)
ARGMAX = Operation("argmax", _argmax, None, "one array and one axis in [-ndim, ndim), not empty, or None for all")
ARGMIN = Operation("argmin", _argmin, None, "one array and one axis in [-ndim, ndim), not empty, or None for all")
ANY = Operation("any", _any, None, _EXPECTS)
ALL = Operation("all", _all, None, _EXPECTS)

OPERATIONS = (SUM, MEAN, AMAX, AMIN, ARGMAX, ARGMIN, ANY, ALL)
