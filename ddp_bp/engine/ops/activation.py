"""Elementwise activations beyond those of `functions`: leaky ReLU, GELU, SiLU, softplus and ELU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

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


def _sigmoid(a: Array) -> Array:
    output = np.asarray(a * 0.5)
    np.tanh(output, out=output)
    output += 1
    output *= 0.5
    return output


def _silu(a: Array) -> tuple[Array, Any]:
    gate = _sigmoid(_floats(a))
    return np.multiply(a, gate), (a, gate)


def _silu_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    a, gate = saved
    # The slope is gate * (1 + a * (1 - gate)).
    slope = np.asarray(1 - gate)
    slope *= a
    slope += 1
    slope *= gate
    slope *= gradient
    return (slope,)


def _softplus(a: Array, beta: float, threshold: float) -> tuple[Array, Any]:
    scaled = np.asarray(_floats(a) * beta)
    # log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)) never overflows.
    output = np.asarray(np.abs(scaled))
    np.negative(output, out=output)
    np.exp(output, out=output)
    np.log1p(output, out=output)
    output += np.maximum(scaled, 0)
    output /= beta
    np.copyto(output, a, where=scaled > threshold)
    return output, (scaled, threshold)


def _softplus_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    scaled, threshold = saved
    slope = _sigmoid(scaled)
    slope *= gradient
    np.copyto(slope, gradient, where=scaled > threshold)
    return (slope,)


# The slope of the cubic inside the tanh form: sqrt(2 / pi) * (x + 0.044715 x^3), of Hendrycks and Gimpel, 2016.
_TANH_SCALE = math.sqrt(2 / math.pi)
_TANH_CUBIC = 0.044715


def _gelu(a: Array, approximate: str) -> tuple[Array, Any]:
    if approximate == "none":
        share, _ = normal_distribution(_floats(a))
        return np.multiply(a, share), (a, share, approximate)
    if approximate != "tanh":
        raise InputError(f"gelu takes approximate 'none' or 'tanh' and got {approximate!r}")
    share = np.asarray(np.square(_floats(a)))
    share *= _TANH_CUBIC * _TANH_SCALE
    share += _TANH_SCALE
    share *= a
    np.tanh(share, out=share)
    share += 1
    share *= 0.5
    return np.multiply(a, share), (a, share, approximate)


def _gelu_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    a, share, approximate = saved
    if approximate == "none":
        _, slope = normal_distribution(a, only_density=True)
    else:
        # share = (1 + tanh(u)) / 2 has the derivative 2 * share * (1 - share) * u'.
        slope = np.asarray(np.square(a))
        slope *= 6 * _TANH_CUBIC * _TANH_SCALE
        slope += 2 * _TANH_SCALE
        slope *= share
        slope *= 1 - share
    slope *= a
    slope += share
    slope *= gradient
    return (slope,)


LEAKY_RELU = Operation("leaky_relu", _leaky_relu, _leaky_relu_vjp, f"{_FLOATS} and a slope", reads=(0,))
ELU = Operation("elu", _elu, _elu_vjp, f"{_FLOATS} and alpha", reads=(0,), reads_output=True)
SILU = Operation("silu", _silu, _silu_vjp, _FLOATS, reads=(0,))
SOFTPLUS = Operation("softplus", _softplus, _softplus_vjp, f"{_FLOATS}, beta and a threshold")
GELU = Operation("gelu", _gelu, _gelu_vjp, f"{_FLOATS} and a form, 'none' or 'tanh'", reads=(0,))

OPERATIONS = (LEAKY_RELU, ELU, SILU, SOFTPLUS, GELU)
