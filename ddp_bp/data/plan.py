"""Which samples each shard of each step holds: pure functions of (samples, batch size, shards, seed, step).

Nothing here knows how many ranks there are, which is what makes a run independent of them. This module does no I/O and
must not know where samples come from.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ddp_bp.data.order import EPOCH, random_order
from ddp_bp.errors import DataError


@dataclass(frozen=True)
class ShardPlan:
    """The assignment of training samples to steps and shards.

    Each epoch visits every sample exactly once, in an order of its own. Its steps cut that order into batches of
    `batch_size` samples; the last batch is smaller where `batch_size` does not divide `num_samples`, and a
    `batch_size` above `num_samples` means one batch of all samples. Each batch is cut into `num_shards` contiguous
    shards whose sizes differ by at most one; some are empty when a batch has fewer samples than there are shards.

    Raises DataError when a count is below 1 or the seed is outside [0, 2**64).
    """

    num_samples: int
    batch_size: int
    num_shards: int
    seed: int

    def __post_init__(self) -> None:
        for what, value in (
            ("number of samples", self.num_samples),
            ("batch size", self.batch_size),
            ("number of shards", self.num_shards),
        ):
            if value < 1:
                raise DataError(f"shard plan: the {what} must be at least 1, got {value}")
        if not 0 <= self.seed < 2**64:
            raise DataError(f"shard plan: the seed must be in [0, 2**64), got {self.seed}")

    @cached_property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch: ceil(num_samples / batch_size)."""
        return -(-self.num_samples // self.batch_size)

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, step in the epoch), both from 0, of the global `step`, from 0. Raises DataError if it is negative."""
        if step < 0:
            raise DataError(f"shard plan: a step is counted from 0, got {step}")
        return divmod(step, self.steps_per_epoch)

    def epoch_order(self, epoch: int) -> NDArray[np.int64]:
        """The sample ids in the order in which `epoch` visits them, int64 of shape (num_samples,)."""
        return random_order(self.num_samples, seed=self.seed, index=epoch, purpose=EPOCH)

    def batch_size_at(self, step_in_epoch: int) -> int:
        """Number of samples in a batch. Raises DataError for a step that the epoch does not have."""
        if not 0 <= step_in_epoch < self.steps_per_epoch:
            raise DataError(
                f"shard plan: step {step_in_epoch} is not in an epoch of {self.steps_per_epoch} steps, counted from 0"
            )
        return min(self.batch_size, self.num_samples - step_in_epoch * self.batch_size)

    def shard_bounds(self, num_batch_samples: int, shard: int) -> tuple[int, int]:
        """Half-open range (lo, hi) that `shard` holds of a batch of `num_batch_samples` samples.

        Raises DataError for a shard outside [0, num_shards).
        """
        if not 0 <= shard < self.num_shards:
            raise DataError(f"shard plan: shard {shard} is not one of {self.num_shards} shards, counted from 0")
        return shard * num_batch_samples // self.num_shards, (shard + 1) * num_batch_samples // self.num_shards

    def shard_range(self, step: int, shard: int) -> tuple[int, int, int]:
        """(epoch, lo, hi): `shard` of the global `step` holds `epoch_order(epoch)[lo:hi]`."""
        epoch, step_in_epoch = self.position(step)
        lo, hi = self.shard_bounds(self.batch_size_at(step_in_epoch), shard)
        start = step_in_epoch * self.batch_size
        return epoch, start + lo, start + hi

    def shard_ids(self, step: int, shard: int) -> NDArray[np.int64]:
        """Sample ids of `shard` at the global `step`, int64 of shape (n,), n possibly 0.

        Orders a whole epoch on every call; `Batches` keeps that order between calls.
        """
        epoch, lo, hi = self.shard_range(step, shard)
        return self.epoch_order(epoch)[lo:hi]


def digest_ids(ids: NDArray[np.int64]) -> int:
    """Fingerprint, in [0, 2**64), of sample ids in their order.

    It is the first 8 bytes, read as a little-endian integer, of the SHA-256 of the ids as little-endian int64.
    """
    content = np.ascontiguousarray(ids, dtype="<i8").data
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")
