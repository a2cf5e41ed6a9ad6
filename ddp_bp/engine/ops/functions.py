"""Elementwise functions of one array. Integers are computed in float32, as in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddp_bp.engine.ops.constants import zeros
from ddp_bp.engine.ops.exponentials import logistic
from ddp_bp.engine.ops.layout import row_blocks
from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation, floating

_NUMBERS = "one array of numbers"
# Elements below which a call costs more than what it does.
_FEW = 4096


def _neg(a: Array) -> tuple[Array, Any]:
    return np.negative(a), None


def _neg_vjp(gradient: Array, saved: None, needs: Needs) -> Gradients:  # noqa: ARG001
    return (np.negative(gradient),)


def _abs(a: Array) -> tuple[Array, Any]:
    return np.abs(a), a


def _abs_vjp(gradient: Array, a: Array, needs: Needs) -> Gradients:  # noqa: ARG001
    return (gradient * np.sign(a),)


def _exp(a: Array) -> tuple[Array, Any]:
    output = np.exp(floating(a))
    return output, output


def _exp_vjp(gradient: Array, output: Array, needs: Needs) -> Gradients:  # noqa: ARG001
    return (gradient * output,)


def _log(a: Array) -> tuple[Array, Any]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(floating(a)), a


def _log_vjp(gradient: Array, a: Array, needs: Needs) -> Gradients:  # noqa: ARG001
    with np.errstate(divide="ignore", invalid="ignore"):
        return (gradient / a,)


def _sqrt(a: Array) -> tuple[Array, Any]:
    with np.errstate(invalid="ignore"):
        output = np.sqrt(floating(a))
    return output, output


def _sqrt_vjp(gradient: Array, output: Array, needs: Needs) -> Gradients:  # noqa: ARG001
    with np.errstate(divide="ignore", invalid="ignore"):
        return (gradient / (2 * output),)


def _tanh(a: Array) -> tuple[Array, Any]:
    output = np.tanh(floating(a))
    return output, output


def _tanh_vjp(gradient: Array, output: Array, needs: Needs) -> Gradients:  # noqa: ARG001
    slope = np.negative(output)
    slope *= output
    slope += 1
    slope *= gradient
    return (slope,)


def _sigmoid(a: Array) -> tuple[Array, Any]:
    a = floating(a)
    output = np.empty_like(a)
    with np.errstate(over="ignore"):
        logistic(a, out=output)
    return output, output


def _sigmoid_vjp(gradient: Array, output: Array, needs: Needs) -> Gradients:  # noqa: ARG001
    slope = np.subtract(1, output)
    slope *= output
    slope *= gradient
    return (slope,)


def _relu(a: Array) -> tuple[Array, Any]:
    if a.size <= _FEW or not a.flags.forc:
        output = np.maximum(a, 0)
        return output, output
    # NumPy's loop over two arrays is four times as fast as that over an array and a number.
    output = np.empty_like(a)
    source, target = a.ravel("K"), output.ravel("K")
    for block in row_blocks(a.size, 1):
        part = source[block]
        np.maximum(part, zeros(len(part), a.dtype), out=target[block])
    return output, output


def _relu_vjp(gradient: Array, output: Array, needs: Needs) -> Gradients:  # noqa: ARG001
    return (gradient * (output > 0),)


def _cast(a: Array, dtype: np.dtype[Any]) -> tuple[Array, Any]:
    return a.astype(dtype), None


def _cast_vjp(gradient: Array, saved: None, needs: Needs) -> Gradients:  # noqa: ARG001
    # The reverse pass gives every gradient the dtype of its input.
    return (gradient,)


NEG = Operation("neg", _neg, _neg_vjp, _NUMBERS)
ABS = Operation("abs", _abs, _abs_vjp, _NUMBERS, reads=(0,))
EXP = Operation("exp", _exp, _exp_vjp, _NUMBERS, reads_output=True)
LOG = Operation("log", _log, _log_vjp, _NUMBERS, reads=(0,))
SQRT = Operation("sqrt", _sqrt, _sqrt_vjp, _NUMBERS, reads_output=True)
TANH = Operation("tanh", _tanh, _tanh_vjp, _NUMBERS, reads_output=True)
SIGMOID = Operation("sigmoid", _sigmoid, _sigmoid_vjp, _NUMBERS, reads_output=True)
RELU = Operation("relu", _relu, _relu_vjp, _NUMBERS, reads_output=True)
CAST = Operation("cast", _cast, _cast_vjp, "one array of numbers and a dtype")

OPERATIONS = (NEG, ABS, EXP, LOG, SQRT, TANH, SIGMOID, RELU, CAST)
