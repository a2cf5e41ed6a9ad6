"""Loads the samples of one shard at one step, and cuts an evaluation into chunks.

It joins a data set to a shard plan. It must not know about ranks, models or what is done with a batch.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddp_bp.data.augment import WORDS_PER_IMAGE, Augment, vary
from ddp_bp.data.dataset import Dataset, Variation
from ddp_bp.data.order import AUGMENT, random_words
from ddp_bp.data.plan import ShardPlan, digest_ids
from ddp_bp.errors import DataError


class Batch(NamedTuple):
    """The samples of one shard at one step.

    `ids` is int64 (n,); `inputs` (n, *input_shape), C-contiguous, float32, or int64 for text; `targets` int64 (n,) for
    classes, int64 (n, T) for text, or float32 (n, K) for regression; `ids_digest` is `digest_ids(ids)`. n may be 0.
    """

    ids: NDArray[np.int64]
    inputs: NDArray[Any]
    targets: NDArray[Any]
    ids_digest: int

    @property
    def num_samples(self) -> int:
        return len(self.ids)


class Batches:
    """Batches of `dataset` by `plan`. Keeps the order of the epoch last asked for: 8 bytes for each sample.

    With `augment`, images are varied by random words that depend on the plan's seed, the step, the shard and the place
    in the shard: the same bits for any number of ranks and after a resume.

    Raises DataError when the plan was made for another number of samples, or `augment` for other inputs.
    """

    def __init__(self, dataset: Dataset, plan: ShardPlan, augment: Augment | None = None) -> None:
        if plan.num_samples != dataset.num_samples:
            raise DataError(
                f"the shard plan is for {plan.num_samples} samples, but the data set has {dataset.num_samples}"
            )
        self.dataset = dataset
        self.plan = plan
        self._augment = augment or Augment()
        self._augment.check_shape(dataset.input_shape)
        self._varies = self._augment.is_random
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def load(self, step: int, shard: int) -> Batch:
        """The samples of `shard` at the global `step`, both from 0. Raises DataError for one out of range."""
        epoch, lo, hi = self.plan.shard_range(step, shard)
        # A copy, so that a batch that is kept does not keep the order of its whole epoch alive.
        ids = self._epoch_order(epoch)[lo:hi].copy()
        variation = self._variation(step, shard, len(ids)) if self._varies else None
        inputs, targets = self.dataset.batch(ids, variation)
        return Batch(ids, inputs, targets, digest_ids(ids))

    def _variation(self, step: int, shard: int, num_samples: int) -> Variation:
        words = random_words(
            num_samples * WORDS_PER_IMAGE, seed=self.plan.seed, index=step, part=shard, purpose=AUGMENT
        )
        return partial(vary, settings=self._augment, words=words.reshape(num_samples, WORDS_PER_IMAGE))

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        known = self._order
        if known is not None and known[0] == epoch:
            return known[1]
        order = self.plan.epoch_order(epoch)
        self._order = (epoch, order)
        return order


def evaluation_chunks(num_samples: int, chunk_size: int) -> tuple[tuple[int, int], ...]:
    """Half-open ranges (lo, hi) that together hold each of `num_samples` samples once, in order.

    All hold `chunk_size` samples but the last, which may hold fewer. Raises DataError for a negative number of samples
    or a chunk size below 1.
    """
    if num_samples < 0 or chunk_size < 1:
        raise DataError(
            f"evaluation chunks need at least 0 samples and a chunk size of at least 1, "
            f"got {num_samples} samples and a chunk size of {chunk_size}"
        )
    return tuple((lo, min(lo + chunk_size, num_samples)) for lo in range(0, num_samples, chunk_size))
