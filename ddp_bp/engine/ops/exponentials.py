"""Exponentials and maxima of rows (M, C), of which softmax, its losses and attention are made; the logistic."""

from __future__ import annotations

import math

import numpy as np

from ddp_bp.engine.ops.operation import Array

# Sums of exponentials up to here are taken as they are: neither they nor products with them overflow.
_LARGEST = 2.0**40


def logistic(a: Array, out: Array) -> None:
    """Writes 1 / (1 + exp(-a)) into `out`, which may be `a`. Run it where NumPy's warnings of overflow are off.

    The lower tail keeps its relative precision, which (1 + tanh(a / 2)) / 2 loses, until exp(-a) overflows and the
    result is 0: below -88 in single precision, where PyTorch's is 0, too.
    """
    # Not np.negative, which NumPy 2.4 gets wrong in place on a column of a wider array.
    np.multiply(a, -1, out=out)
    np.exp(out, out=out)
    out += 1
    np.divide(1, out, out=out)


def row_maxima(rows: Array) -> Array:
    """The largest element of each row, NaN if there is one: (M,). C must not be 0."""
    # On short rows argmax takes a third of the time of maximum.reduce.
    return np.asarray(rows[np.arange(len(rows)), rows.argmax(1)])


def exponentials(rows: Array) -> tuple[Array, Array]:
    """exp(rows - shift), a new (M, C) array, and its sums (M,). Run it where NumPy's warnings are off.

    The shift of a row is 0 as long as the sum is neither large nor small, which spares a search for the row's maximum;
    else it is the maximum, so that a row's largest term is 1. A row of nothing but -inf becomes 0.
    """
    if not rows.shape[1]:
        return np.empty_like(rows), np.zeros(len(rows), rows.dtype)
    ones = np.ones(rows.shape[1], rows.dtype)
    results = np.exp(rows)
    totals = np.asarray(results.dot(ones))
    is_near = (totals > 2.0**-10) & (totals < _LARGEST)
    if not is_near.all():
        far = np.flatnonzero(~is_near)
        part = rows[far]
        highest = row_maxima(part)
        np.copyto(highest, 0, where=highest == -math.inf)
        part -= highest[:, None]
        np.exp(part, out=part)
        results[far] = part
        totals[far] = part.dot(ones)
    return results, totals
