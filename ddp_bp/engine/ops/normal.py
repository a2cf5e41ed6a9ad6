"""The standard normal distribution of whole arrays, which NumPy has no function for.

In double precision: for z >= 0 the upper tail is Q(z) = exp(-z^2 / 2) * f(t) / (z + 4) with t = (z - 4) / (z + 4) in
[-1, 1). f is so smooth that one polynomial serves all of z, with a small relative error in the tails as well. Its
coefficients are those of f's Chebyshev series, computed with 40 digits and cut off where it no longer matters.

In single precision: the probability below x is (1 + tanh(x * p(x^2))) / 2, where p is a polynomial fitted so that the
largest error, times max(1, |x|), is as small as possible for |x| <= 5.6. Further out tanh is 1 in single precision, and
p grows. The error is at most 7e-8, which is that of rounding numbers near 1; it is absolute in the lower tail.
"""

from __future__ import annotations

import math

import numpy as np

from ddp_bp.engine.ops.operation import Array

# Highest power first.
_SINGLE = (
    1.8093633744568261e-09,
    -1.336468731773945e-07,
    3.973113315376813e-06,
    -5.5277942828411934e-05,
    -3.295475409819754e-05,
    0.036333911328626664,
    0.7978844926698722,
)
# Highest power first. Relative error of f: 2e-17.
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


def normal_distribution(x: Array, probability: Array, density: Array) -> None:
    """Writes the probability of a standard normal number below each element of `x`, and the density there.

    All three are of one shape and floating dtype. Takes several passes: give it what fits the cache.
    """
    np.multiply(x, x, out=density)
    if x.dtype.itemsize <= 4:
        _below_single(x, density, probability)
    density *= -0.5
    np.exp(density, out=density)
    if x.dtype.itemsize > 4:
        _below_double(x, density, probability)
    density *= 1 / math.sqrt(2 * math.pi)


def _polynomial(t: Array, coefficients: tuple[float, ...], out: Array) -> None:
    highest, *others = coefficients
    np.multiply(t, highest, out=out)
    for coefficient in others[:-1]:
        out += coefficient
        out *= t
    out += others[-1]


def _below_single(x: Array, square: Array, out: Array) -> None:
    """Writes the probabilities below `x` into `out`, given x^2."""
    _polynomial(square, _SINGLE, out)
    out *= x
    np.tanh(out, out=out)
    out += 1
    out *= 0.5


def _below_double(x: Array, exponential: Array, out: Array) -> None:
    """Writes the probabilities below `x` into `out`, given exp(-x^2 / 2)."""
    scale = np.abs(x)
    scale += 4
    np.divide(1, scale, out=scale)
    t = scale * -8
    t += 1
    tail = np.empty_like(t)
    _polynomial(t, _DOUBLE, tail)
    tail *= scale
    tail *= exponential
    # Below 0 the tail itself is the answer, above 0 what it leaves of 1: |0 - tail| or |1 - tail|.
    np.subtract(x >= 0, tail, out=out)
    np.abs(out, out=out)
