"""The standard normal distribution of whole arrays, which NumPy has no function for.

For z >= 0 the upper tail is Q(z) = exp(-z^2 / 2) * f(t) / (z + 4) with t = (z - 4) / (z + 4) in [-1, 1). f is so smooth
that one polynomial serves all of z, with a small relative error in the tails as well. Its coefficients are those of
f's Chebyshev series, computed with 40 digits and cut off where it no longer matters for the precision.
"""

from __future__ import annotations

import math

import numpy as np

from ddp_bp.engine.ops.layout import row_blocks
from ddp_bp.engine.ops.operation import Array

# Highest power first. Relative error of f: 4e-9 and 2e-17.
_SINGLE = (
    -0.0001573205695845843,
    0.00012932568134075276,
    0.0015637868988265602,
    -0.0034761678949089226,
    -0.0075122313817515655,
    0.06039529586995691,
    -0.18652671087172498,
    0.3871375629108491,
    -0.6078964038146354,
    0.7552851271355856,
)
_DOUBLE = (
    -1.6886576966786177e-09,
    -1.2772351432957439e-09,
    1.606738695732911e-08,
    1.956960893997391e-08,
    -7.878360342693572e-08,
    -1.6223163208535642e-07,
    2.6473372819798594e-07,
    1.0269840701431925e-06,
    -6.249551077565171e-07,
    -5.922893777541928e-06,
    7.146021531267459e-07,
    3.514560235904452e-05,
    -1.907676030719098e-06,
    -0.00023109513778728935,
    0.00013334420916014778,
    0.0016308184854735856,
    -0.0034796923566515025,
    -0.007540188968891619,
    0.06039657489036092,
    -0.1865218579595787,
    0.3871374007422266,
    -0.607896641971893,
    0.7552851304157514,
)


def normal_distribution(a: Array, only_density: bool = False) -> tuple[Array, Array]:
    """The probability of a standard normal number below each element, and the density there.

    With `only_density` the probabilities are not computed, and their array is empty.
    """
    order = sorted(range(a.ndim), key=lambda axis: -abs(a.strides[axis]))
    dense = np.asarray(a.transpose(order), order="C")
    flat = dense.reshape(-1)
    probability = np.empty(0 if only_density else flat.shape, a.dtype)
    density = np.empty(flat.shape, a.dtype)
    for block in row_blocks(flat.size, 1):
        x, y = flat[block], density[block]
        np.multiply(x, x, out=y)
        y *= -0.5
        np.exp(y, out=y)
        if not only_density:
            _below(x, y, probability[block])
        y *= 1 / math.sqrt(2 * math.pi)
    # Back in the layout of `a`, so that what is computed with both goes through memory in order.
    back = sorted(range(a.ndim), key=order.__getitem__)
    shaped = density.reshape(dense.shape).transpose(back)
    return probability if only_density else probability.reshape(dense.shape).transpose(back), shaped


def _below(x: Array, exponential: Array, out: Array) -> None:
    """Writes the probabilities below `x` into `out`, given exp(-x^2 / 2)."""
    scale = np.abs(x)
    scale += 4
    np.divide(1, scale, out=scale)
    t = scale * -8
    t += 1
    highest, *others = _SINGLE if x.dtype.itemsize <= 4 else _DOUBLE
    tail = t * highest
    for coefficient in others[:-1]:
        tail += coefficient
        tail *= t
    tail += others[-1]
    tail *= scale
    tail *= exponential
    # Below 0 the tail itself is the answer, above 0 what it leaves of 1: |0 - tail| or |1 - tail|.
    np.subtract(x >= 0, tail, out=out)
    np.abs(out, out=out)
