"""Elementwise activations beyond those of `functions`: leaky ReLU, GELU, SiLU, softplus and ELU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ddp_bp.engine.ops.blockwise import with_slopes
from ddp_bp.engine.ops.exponentials import logistic
from ddp_bp.engine.ops.normal import normal_distribution
from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation
from ddp_bp.errors import InputError

_FLOATS = "one array of floats"


def _floats(a: Array) -> Array:
    if a.dtype.kind != "f":
        raise TypeError("the input is not floating")
    return a


def _leaky_relu(a: Array, negative_slope: float) -> tuple[Array, Any]:
    output = np.asarray(_floats(a) * negative_slope)
    np.copyto(output, a, where=a > 0)
    return output, (a, negative_slope)


def _leaky_relu_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    a, negative_slope = saved
    result = np.asarray(gradient * negative_slope)
    np.copyto(result, gradient, where=a > 0)
    return (result,)


def _elu(a: Array, alpha: float) -> tuple[Array, Any]:
    output = np.asarray(np.expm1(np.minimum(_floats(a), 0)))
    output *= alpha
    np.copyto(output, a, where=a > 0)
    return output, (a, output, alpha)


def _elu_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    a, output, alpha = saved
    # alpha * exp(a) is the output plus alpha below 0.
    result = np.asarray(output + output.dtype.type(alpha))
    result *= gradient
    np.copyto(result, gradient, where=a > 0)
    return (result,)


def _times_slope(gradient: Array, slope: Array, needs: Needs) -> Gradients:  # noqa: ARG001
    return (gradient * slope,)


def _silu(a: Array) -> tuple[Array, Any]:
    def fill(x: Array, output: Array, slope: Array) -> None:
        gate = np.empty_like(x)
        logistic(x, out=gate)
        np.multiply(x, gate, out=output)
        # The slope is gate * (1 + x * (1 - gate)) = gate + output - output * gate.
        np.multiply(output, gate, out=slope)
        np.subtract(output, slope, out=slope)
        slope += gate

    with np.errstate(over="ignore"):
        return with_slopes(_floats(a), fill)


def _softplus(a: Array, beta: float, threshold: float) -> tuple[Array, Any]:
    def fill(x: Array, output: Array, slope: Array) -> None:
        scaled = x * beta
        # log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)) never overflows.
        np.abs(scaled, out=output)
        np.negative(output, out=output)
        np.exp(output, out=output)
        np.log1p(output, out=output)
        output += np.maximum(scaled, 0)
        output /= beta
        logistic(scaled, out=slope)
        is_straight = scaled > threshold
        np.copyto(output, x, where=is_straight)
        np.copyto(slope, 1, where=is_straight)

    with np.errstate(over="ignore"):
        return with_slopes(_floats(a), fill)


# The slope of the cubic inside the tanh form: sqrt(2 / pi) * (x + 0.044715 x^3), of Hendrycks and Gimpel, 2016.
_TANH_SCALE = math.sqrt(2 / math.pi)
_TANH_CUBIC = 0.044715


def _gelu_exact(x: Array, output: Array, slope: Array) -> None:
    share = np.empty_like(x)
    normal_distribution(x, share, slope)
    np.multiply(x, share, out=output)
    slope *= x
    slope += share


def _gelu_tanh(x: Array, output: Array, slope: Array) -> None:
    np.multiply(x, x, out=slope)
    share = slope * (_TANH_CUBIC * _TANH_SCALE)
    share += _TANH_SCALE
    share *= x
    np.tanh(share, out=share)
    share += 1
    share *= 0.5
    np.multiply(x, share, out=output)
    # share = (1 + tanh(u)) / 2 has the derivative 2 * share * (1 - share) * u', and output = x * share.
    slope *= 6 * _TANH_CUBIC * _TANH_SCALE
    slope += 2 * _TANH_SCALE
    slope *= output
    slope *= 1 - share
    slope += share


_GELU_FORMS = {"none": _gelu_exact, "tanh": _gelu_tanh}


def _gelu(a: Array, approximate: str) -> tuple[Array, Any]:
    if approximate not in _GELU_FORMS:
        raise InputError(f"gelu takes approximate 'none' or 'tanh' and got {approximate!r}")
    return with_slopes(_floats(a), _GELU_FORMS[approximate])


LEAKY_RELU = Operation("leaky_relu", _leaky_relu, _leaky_relu_vjp, f"{_FLOATS} and a slope", reads=(0,))
ELU = Operation("elu", _elu, _elu_vjp, f"{_FLOATS} and alpha", reads=(0,), reads_output=True)
SILU = Operation("silu", _silu, _times_slope, _FLOATS)
SOFTPLUS = Operation("softplus", _softplus, _times_slope, f"{_FLOATS}, beta and a threshold")
GELU = Operation("gelu", _gelu, _times_slope, f"{_FLOATS} and a form, 'none' or 'tanh'")

OPERATIONS = (LEAKY_RELU, ELU, SILU, SOFTPLUS, GELU)
