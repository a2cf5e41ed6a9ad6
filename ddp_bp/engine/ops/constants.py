"""Arrays that operations read again and again, made once for each length. They are read-only.

On small arrays, making a vector of ones costs more than the product with it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ddp_bp.engine.ops.operation import Array

# Sides of batches and layers, of which a program has few. Longer vectors are not worth keeping.
_MAX_KEPT = 64
_MAX_LENGTH = 32768


def ones(length: int, dtype: np.dtype[Any]) -> Array:
    """(length,) of ones. A product with them sums rows, or columns, faster than `np.add.reduce` does."""
    return _kept_ones(length, dtype) if length <= _MAX_LENGTH else np.ones(length, dtype)


def zeros(length: int, dtype: np.dtype[Any]) -> Array:
    """(length,) of zeros."""
    return _kept_zeros(length, dtype) if length <= _MAX_LENGTH else np.zeros(length, dtype)


def multiples(length: int, step: int) -> Array:
    """0, step, 2 * step, ... of type intp, (length,)."""
    return _kept_multiples(length, step) if length <= _MAX_LENGTH else np.arange(0, length * step, step)


@lru_cache(_MAX_KEPT)
def _kept_ones(length: int, dtype: np.dtype[Any]) -> Array:
    return _locked(np.ones(length, dtype))


@lru_cache(_MAX_KEPT)
def _kept_zeros(length: int, dtype: np.dtype[Any]) -> Array:
    return _locked(np.zeros(length, dtype))


@lru_cache(_MAX_KEPT)
def _kept_multiples(length: int, step: int) -> Array:
    return _locked(np.arange(0, length * step, step))


def _locked(array: Array) -> Array:
    array.flags.writeable = False
    return array
