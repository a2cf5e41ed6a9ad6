"""Elementwise functions of one array beyond the everyday ones. Integers are computed in float32, as in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation, floating

_NUMBERS = "one array of numbers"


def _square(a: Array) -> tuple[Array, Any]:
    return np.square(a), a


def _square_vjp(gradient: Array, a: Array, needs: Needs) -> Gradients:  # noqa: ARG001
    result = np.asarray(gradient * a)
    result *= 2
    return (result,)


def _reciprocal(a: Array) -> tuple[Array, Any]:
    with np.errstate(divide="ignore"):
        output = np.reciprocal(floating(a))
    return output, output


def _reciprocal_vjp(gradient: Array, output: Array, needs: Needs) -> Gradients:  # noqa: ARG001
    with np.errstate(invalid="ignore", over="ignore"):
        slope = np.asarray(np.square(output))
        slope *= gradient
    return (np.negative(slope, out=slope),)


def _rsqrt(a: Array) -> tuple[Array, Any]:
    with np.errstate(divide="ignore", invalid="ignore"):
        output = np.asarray(np.sqrt(floating(a)))
        np.reciprocal(output, out=output)
    return output, output


def _rsqrt_vjp(gradient: Array, output: Array, needs: Needs) -> Gradients:  # noqa: ARG001
    with np.errstate(invalid="ignore", over="ignore"):
        slope = np.asarray(output * output)
        slope *= output
        slope *= -0.5
        slope *= gradient
    return (slope,)


def _log1p(a: Array) -> tuple[Array, Any]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log1p(floating(a)), a


def _log1p_vjp(gradient: Array, a: Array, needs: Needs) -> Gradients:  # noqa: ARG001
    with np.errstate(divide="ignore", invalid="ignore"):
        return (gradient / (a + 1),)


def _log2(a: Array) -> tuple[Array, Any]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log2(floating(a)), a


def _log2_vjp(gradient: Array, a: Array, needs: Needs) -> Gradients:  # noqa: ARG001
    with np.errstate(divide="ignore", invalid="ignore"):
        return (gradient / (a * float(np.log(2))),)


def _expm1(a: Array) -> tuple[Array, Any]:
    output = np.expm1(floating(a))
    return output, output


def _expm1_vjp(gradient: Array, output: Array, needs: Needs) -> Gradients:  # noqa: ARG001
    slope = np.asarray(output + 1)
    slope *= gradient
    return (slope,)


def _sin(a: Array) -> tuple[Array, Any]:
    return np.sin(floating(a)), a


def _sin_vjp(gradient: Array, a: Array, needs: Needs) -> Gradients:  # noqa: ARG001
    return (gradient * np.cos(a),)


def _cos(a: Array) -> tuple[Array, Any]:
    return np.cos(floating(a)), a


def _cos_vjp(gradient: Array, a: Array, needs: Needs) -> Gradients:  # noqa: ARG001
    slope = np.asarray(np.sin(a))
    slope *= gradient
    return (np.negative(slope, out=slope),)


SQUARE = Operation("square", _square, _square_vjp, _NUMBERS, reads=(0,))
RECIPROCAL = Operation("reciprocal", _reciprocal, _reciprocal_vjp, _NUMBERS, reads_output=True)
RSQRT = Operation("rsqrt", _rsqrt, _rsqrt_vjp, _NUMBERS, reads_output=True)
LOG1P = Operation("log1p", _log1p, _log1p_vjp, _NUMBERS, reads=(0,))
LOG2 = Operation("log2", _log2, _log2_vjp, _NUMBERS, reads=(0,))
EXPM1 = Operation("expm1", _expm1, _expm1_vjp, _NUMBERS, reads_output=True)
SIN = Operation("sin", _sin, _sin_vjp, _NUMBERS, reads=(0,))
COS = Operation("cos", _cos, _cos_vjp, _NUMBERS, reads=(0,))

OPERATIONS = (SQUARE, RECIPROCAL, RSQRT, LOG1P, LOG2, EXPM1, SIN, COS)
