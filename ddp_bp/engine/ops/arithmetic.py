"""Elementwise arithmetic of two arrays that broadcast together."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation, unbroadcast

_BROADCAST = "two arrays of numbers whose shapes broadcast together"


def promote(a: Array, b: Array) -> tuple[Array, Array]:
    """Integers beside floats take the floats' dtype, as in PyTorch; NumPy would make int64 and float32 a float64."""
    if a.dtype is not b.dtype and (a.dtype.kind == "f") != (b.dtype.kind == "f"):
        return (a, b.astype(a.dtype)) if a.dtype.kind == "f" else (a.astype(b.dtype), b)
    return a, b


def _add(a: Array, b: Array) -> tuple[Array, Any]:
    a, b = promote(a, b)
    return np.add(a, b), (a.shape, b.shape)


def _add_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    return (
        unbroadcast(gradient, saved[0]) if needs[0] else None,
        unbroadcast(gradient, saved[1]) if needs[1] else None,
    )


def _sub(a: Array, b: Array) -> tuple[Array, Any]:
    a, b = promote(a, b)
    return np.subtract(a, b), (a.shape, b.shape)


def _sub_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    return (
        unbroadcast(gradient, saved[0]) if needs[0] else None,
        np.negative(unbroadcast(gradient, saved[1])) if needs[1] else None,
    )


def _mul(a: Array, b: Array) -> tuple[Array, Any]:
    a, b = promote(a, b)
    return np.multiply(a, b), (a, b)


def _mul_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    a, b = saved
    return (
        unbroadcast(gradient * b, a.shape) if needs[0] else None,
        unbroadcast(gradient * a, b.shape) if needs[1] else None,
    )


def _div(a: Array, b: Array) -> tuple[Array, Any]:
    a, b = promote(a, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        output = np.true_divide(a, b)
    return output if a.dtype.kind == "f" else output.astype(np.float32), (a, b)


def _div_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    a, b = saved
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = gradient / b
        grad_b = unbroadcast(-scaled * a / b, b.shape) if needs[1] else None
    return unbroadcast(scaled, a.shape) if needs[0] else None, grad_b


def _pow(a: Array, b: Array) -> tuple[Array, Any]:
    a, b = promote(a, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.power(a, b), (a, b)


def _pow_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    a, b = saved
    grad_a = grad_b = None
    with np.errstate(divide="ignore", invalid="ignore"):
        if needs[0]:
            # An exponent of 0 gives a constant, so its slope is 0 even where a ** -1 is infinite.
            slope = np.where(b == 0, 0, b * np.power(a, b - 1))
            grad_a = unbroadcast(gradient * slope, a.shape)
        if needs[1]:
            # 0 ** b stays 0 around any b > 0, where log(0) would give NaN.
            slope = np.where((a == 0) & (b >= 0), 0, np.power(a, b) * np.log(a))
            grad_b = unbroadcast(gradient * slope, b.shape)
    return grad_a, grad_b


def _maximum(a: Array, b: Array) -> tuple[Array, Any]:
    a, b = promote(a, b)
    return np.maximum(a, b), (a, b)


def _minimum(a: Array, b: Array) -> tuple[Array, Any]:
    a, b = promote(a, b)
    return np.minimum(a, b), (a, b)


def _share(a: Array, b: Array, gradient: Array) -> Array:
    """The part of `gradient` that goes to `a` where `a > b`; equal values share it, as in PyTorch."""
    share = np.asarray((a > b) + 0.5 * (a == b), gradient.dtype)
    return np.asarray(gradient * share)


def _maximum_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    a, b = saved
    return (
        unbroadcast(_share(a, b, gradient), a.shape) if needs[0] else None,
        unbroadcast(_share(b, a, gradient), b.shape) if needs[1] else None,
    )


def _minimum_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    a, b = saved
    return (
        unbroadcast(_share(b, a, gradient), a.shape) if needs[0] else None,
        unbroadcast(_share(a, b, gradient), b.shape) if needs[1] else None,
    )


def _where(condition: Array, a: Array, b: Array) -> tuple[Array, Any]:
    if condition.dtype.kind != "b":
        raise TypeError("the condition is not boolean")
    a, b = promote(a, b)
    return np.where(condition, a, b), (condition, a.shape, b.shape)


def _where_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    condition, shape_a, shape_b = saved
    return (
        None,
        unbroadcast(gradient * condition, shape_a) if needs[1] else None,
        unbroadcast(gradient * ~condition, shape_b) if needs[2] else None,
    )


def _eq(a: Array, b: Array) -> tuple[Array, Any]:
    a, b = promote(a, b)
    return np.equal(a, b), None


def _ne(a: Array, b: Array) -> tuple[Array, Any]:
    a, b = promote(a, b)
    return np.not_equal(a, b), None


def _lt(a: Array, b: Array) -> tuple[Array, Any]:
    a, b = promote(a, b)
    return np.less(a, b), None


def _le(a: Array, b: Array) -> tuple[Array, Any]:
    a, b = promote(a, b)
    return np.less_equal(a, b), None


def _gt(a: Array, b: Array) -> tuple[Array, Any]:
    a, b = promote(a, b)
    return np.greater(a, b), None


def _ge(a: Array, b: Array) -> tuple[Array, Any]:
    a, b = promote(a, b)
    return np.greater_equal(a, b), None


ADD = Operation("add", _add, _add_vjp, _BROADCAST)
SUB = Operation("sub", _sub, _sub_vjp, _BROADCAST)
MUL = Operation("mul", _mul, _mul_vjp, _BROADCAST, reads=(0, 1))
DIV = Operation("div", _div, _div_vjp, _BROADCAST, reads=(0, 1))
POW = Operation("pow", _pow, _pow_vjp, _BROADCAST, reads=(0, 1))
MAXIMUM = Operation("maximum", _maximum, _maximum_vjp, _BROADCAST, reads=(0, 1))
MINIMUM = Operation("minimum", _minimum, _minimum_vjp, _BROADCAST, reads=(0, 1))
WHERE = Operation(
    "where", _where, _where_vjp, "a boolean condition and two arrays, all of which broadcast together", reads=(0,)
)
EQ = Operation("eq", _eq, None, _BROADCAST)
NE = Operation("ne", _ne, None, _BROADCAST)
LT = Operation("lt", _lt, None, _BROADCAST)
LE = Operation("le", _le, None, _BROADCAST)
GT = Operation("gt", _gt, None, _BROADCAST)
GE = Operation("ge", _ge, None, _BROADCAST)

OPERATIONS = (ADD, SUB, MUL, DIV, POW, MAXIMUM, MINIMUM, WHERE, EQ, NE, LT, LE, GT, GE)
