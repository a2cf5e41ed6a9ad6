"""Initialisers, which fill a tensor in place and return it. They draw from the current random stream.

Fans are those of PyTorch: a weight (out, in, *window) has fan_in = in * window and fan_out = out * window elements.
"""

from __future__ import annotations

import difflib
import math
from typing import TypeVar

import numpy as np

from ddp_bp.engine import random
from ddp_bp.engine.graph import no_grad
from ddp_bp.engine.ops.operation import Array
from ddp_bp.engine.tensor import Tensor
from ddp_bp.errors import InputError, ShapeError

T = TypeVar("T", bound=Tensor)

_GAINS = {
    "linear": 1.0,
    "conv1d": 1.0,
    "conv2d": 1.0,
    "conv3d": 1.0,
    "conv_transpose1d": 1.0,
    "conv_transpose2d": 1.0,
    "conv_transpose3d": 1.0,
    "sigmoid": 1.0,
    "tanh": 5.0 / 3.0,
    "relu": math.sqrt(2.0),
    "selu": 0.75,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor by which a weight's scale makes up for the nonlinearity; `param` is leaky_relu's negative slope."""
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1.0 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in _GAINS:
        names = [*_GAINS, "leaky_relu"]
        nearest = difflib.get_close_matches(nonlinearity, names, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"it takes one of {', '.join(names)}"
        raise InputError(f"calculate_gain got the nonlinearity {nonlinearity!r}; {hint}")
    return _GAINS[nonlinearity]


def uniform_(tensor: T, a: float = 0.0, b: float = 1.0) -> T:
    """Uniform in [a, b)."""
    values = _draw("random", tensor)
    values *= b - a
    values += a
    return _fill(tensor, values)


def normal_(tensor: T, mean: float = 0.0, std: float = 1.0) -> T:
    values = _draw("standard_normal", tensor)
    values *= std
    values += mean
    return _fill(tensor, values)


def constant_(tensor: T, val: float) -> T:
    with no_grad():
        return tensor.fill_(val)


def zeros_(tensor: T) -> T:
    return constant_(tensor, 0.0)


def ones_(tensor: T) -> T:
    return constant_(tensor, 1.0)


def xavier_uniform_(tensor: T, gain: float = 1.0) -> T:
    """Uniform within gain * sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""
    bound = gain * math.sqrt(6.0 / max(sum(_fans(tensor)), 1))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: T, gain: float = 1.0) -> T:
    """Normal with deviation gain * sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / max(sum(_fans(tensor)), 1)))


def kaiming_uniform_(tensor: T, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> T:
    """Uniform within gain * sqrt(3 / fan) (He et al., 2015); `a` is leaky_relu's negative slope."""
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(tensor: T, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> T:
    """Normal with deviation gain / sqrt(fan) (He et al., 2015); `a` is leaky_relu's negative slope."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity))


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise InputError(f"a Kaiming initialiser takes the mode 'fan_in' or 'fan_out' and got {mode!r}")
    fan = _fans(tensor)[0 if mode == "fan_in" else 1]
    return calculate_gain(nonlinearity, a) / math.sqrt(max(fan, 1))


def _fans(tensor: Tensor) -> tuple[int, int]:
    if tensor.ndim < 2:
        raise ShapeError(f"an initialiser with fans takes a tensor of two axes or more and got shape {tensor.shape}")
    window = math.prod(tensor.shape[2:])
    return tensor.shape[1] * window, tensor.shape[0] * window


def _draw(distribution: str, tensor: Tensor) -> Array:
    # NumPy draws in single and double precision only.
    dtype = np.float32 if tensor.dtype.itemsize <= 4 else np.float64
    generator = random.generator()
    draw = generator.random if distribution == "random" else generator.standard_normal
    return np.asarray(draw(tensor.shape, dtype))


def _fill(tensor: T, values: Array) -> T:
    with no_grad():
        return tensor.copy_(values.astype(tensor.dtype, copy=False))
