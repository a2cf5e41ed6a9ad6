"""Random orders of samples that are the same bits on every machine and with every version of NumPy.

An order is the stable argsort of raw words of the counter-based generator Philox-4x64-10 (Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC'11). NumPy promises the raw words of a bit generator; it does not promise the
output of `Generator.permutation`, which is why that is not used. This module must not know what is being ordered.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ddp_bp.errors import DataError

SPLIT: Final = 1
"""Purpose of the order that separates training from evaluation samples."""
EPOCH: Final = 2
"""Purpose of the order in which an epoch visits the training samples."""

_WORD_LIMIT: Final = 2**64


def random_order(num_samples: int, *, seed: int, index: int, purpose: int) -> NDArray[np.int64]:
    """A permutation of `range(num_samples)`, int64 of shape (num_samples,).

    The Philox key is (`seed`, `index`), both in [0, 2**64); `purpose` is the highest word of the counter, so that
    orders for different purposes use words that never overlap. Raises DataError for a number that does not fit.
    """
    for what, value in (("seed", seed), ("index", index), ("purpose", purpose)):
        if not 0 <= value < _WORD_LIMIT:
            raise DataError(f"the {what} of a random order must be in [0, 2**64), got {value}")
    key = np.array([seed, index], dtype=np.uint64)
    counter = np.array([0, 0, 0, purpose], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(num_samples)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)
