"""Elementwise functions with steps: clipping, rounding, remainders, and the logic of booleans and bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ddp_bp.engine.ops.arithmetic import promote
from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation, unbroadcast

_NUMBERS = "one array of numbers"
_TWO_NUMBERS = "two arrays of numbers whose shapes broadcast together"
_BITS = "two arrays of integers or booleans whose shapes broadcast together"


def _clip(a: Array, low: Array, high: Array) -> tuple[Array, Any]:
    # Where the bounds cross, the upper one holds, as in PyTorch.
    output = np.minimum(*promote(np.maximum(*promote(a, low)), high))
    return output, (a, low, high)


def _clip_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    # A value on a bound counts as inside.
    a, low, high = saved
    return (
        unbroadcast(gradient * ((a >= low) & (a <= high)), a.shape) if needs[0] else None,
        unbroadcast(gradient * ((a < low) & (low < high)), low.shape) if needs[1] else None,
        unbroadcast(gradient * ((a > high) | (high < low)), high.shape) if needs[2] else None,
    )


def _remainder(a: Array, b: Array) -> tuple[Array, Any]:
    a, b = promote(a, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.remainder(a, b), (a, b)


def _remainder_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    a, b = saved
    grad_b = None
    if needs[1]:
        with np.errstate(divide="ignore", invalid="ignore"):
            grad_b = unbroadcast(np.negative(gradient * np.floor_divide(a, b)), b.shape)
    return unbroadcast(gradient, a.shape) if needs[0] else None, grad_b


def _floor_divide(a: Array, b: Array) -> tuple[Array, Any]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.floor_divide(*promote(a, b)), None


def _flat_vjp(gradient: Array, saved: None, needs: Needs) -> Gradients:  # noqa: ARG001
    """Between the steps, the slope is 0."""
    return (np.zeros_like(gradient),)


def _of_one(ufunc: Any) -> Callable[[Array], tuple[Array, Any]]:
    return lambda a: (ufunc(a), None)


def _rounding(ufunc: Any) -> Callable[[Array], tuple[Array, Any]]:
    return lambda a: (ufunc(a) if a.dtype.kind == "f" else a.copy(), None)


def _of_two(ufunc: Any) -> Callable[[Array, Array], tuple[Array, Any]]:
    return lambda a, b: (ufunc(a, b), None)


CLIP = Operation(
    "clip",
    _clip,
    _clip_vjp,
    "an array, a lower and an upper bound, all of which broadcast together",
    reads=(0, 1, 2),
)
REMAINDER = Operation("remainder", _remainder, _remainder_vjp, _TWO_NUMBERS, reads=(0, 1))
FLOOR_DIVIDE = Operation("floor_divide", _floor_divide, None, _TWO_NUMBERS)
SIGN = Operation("sign", _of_one(np.sign), _flat_vjp, _NUMBERS)
FLOOR = Operation("floor", _rounding(np.floor), _flat_vjp, _NUMBERS)
CEIL = Operation("ceil", _rounding(np.ceil), _flat_vjp, _NUMBERS)
ROUND = Operation("round", _rounding(np.rint), _flat_vjp, _NUMBERS)
TRUNC = Operation("trunc", _rounding(np.trunc), _flat_vjp, _NUMBERS)
ISNAN = Operation("isnan", _of_one(np.isnan), None, _NUMBERS)
ISFINITE = Operation("isfinite", _of_one(np.isfinite), None, _NUMBERS)
BITWISE_AND = Operation("bitwise_and", _of_two(np.bitwise_and), None, _BITS)
BITWISE_OR = Operation("bitwise_or", _of_two(np.bitwise_or), None, _BITS)
BITWISE_XOR = Operation("bitwise_xor", _of_two(np.bitwise_xor), None, _BITS)
BITWISE_NOT = Operation("bitwise_not", _of_one(np.invert), None, "one array of integers or booleans")

OPERATIONS = (
    CLIP,
    REMAINDER,
    FLOOR_DIVIDE,
    SIGN,
    FLOOR,
    CEIL,
    ROUND,
    TRUNC,
    ISNAN,
    ISFINITE,
    BITWISE_AND,
    BITWISE_OR,
    BITWISE_XOR,
    BITWISE_NOT,
)
