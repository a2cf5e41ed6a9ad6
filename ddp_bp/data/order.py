"""Random words and orders of samples that are the same bits on every machine and with every version of NumPy.

The words are those of the counter-based generator Philox-4x64-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC'11), and an order is their stable argsort. NumPy promises the raw words of a bit generator; it does not
promise the output of `Generator.permutation`, which is why that is not used. This module must not know what is ordered.
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
AUGMENT: Final = 3
"""Purpose of the words that vary the images of one shard at one step."""
AUDIT: Final = 4
"""Purpose of the words that choose which shards of a step are computed twice, and by whom."""

_WORD_LIMIT: Final = 2**64


def random_words(num_words: int, *, seed: int, index: int, purpose: int, part: int = 0) -> NDArray[np.uint64]:
    """Words uniform in [0, 2**64), uint64 of shape (num_words,), that depend on nothing but the arguments.

    The Philox key is (`seed`, `index`); `purpose` and `part` are the two highest words of the counter, so that no two
    combinations share words. All four are in [0, 2**64). Raises DataError for a number that does not fit.
    """
    for what, value in (("seed", seed), ("index", index), ("purpose", purpose), ("part", part)):
        if not 0 <= value < _WORD_LIMIT:
            raise DataError(f"the {what} of random words must be in [0, 2**64), got {value}")
    key = np.array([seed, index], dtype=np.uint64)
    counter = np.array([0, 0, part, purpose], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(num_words)


def random_order(num_samples: int, *, seed: int, index: int, purpose: int) -> NDArray[np.int64]:
    """A permutation of `range(num_samples)`, int64 of shape (num_samples,), by `random_words`' arguments."""
    words = random_words(num_samples, seed=seed, index=index, purpose=purpose)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)
