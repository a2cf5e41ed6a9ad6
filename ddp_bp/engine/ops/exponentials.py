"""Exponentials and maxima of rows (M, C), which softmax, its losses and attention are made of."""

from __future__ import annotations

import math

import numpy as np

from ddp_bp.engine.ops.operation import Array

# Sums of exponentials up to here are taken as they are: neither they nor products with them overflow.
_LARGEST = 2.0**40


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
