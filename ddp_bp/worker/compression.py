"""Gradients rounded to bfloat16, so that half as much crosses a link: each shard's, and every sum along the tree.

What rounding takes away from a shard's gradient is added to that shard's next one (error feedback), whoever computes
it, so that nothing is lost for good; it belongs to the state of a run. All of it is element by element and follows the
tree, so that the bits are the same for any number of ranks, one included. Knows no messages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddp_bp.parallel.bfloat16 import round_with_feedback
from ddp_bp.parallel.communicator import Array


class Compression:
    """The rounding of one rank's shards. Nothing here is collective."""

    def __init__(self, errors: Array, own_shards: Sequence[int]) -> None:
        """`errors`: (V, P), by shard what rounding has taken away; those of `own_shards` are this rank's to change."""
        self.errors, self.own_shards = errors, tuple(own_shards)
        # A step that is skipped must leave everything as it was.
        self._pending = {shard: np.zeros_like(errors[shard]) for shard in own_shards}

    @property
    def num_elements(self) -> int:
        """P: what follows a gradient in its vector is not rounded."""
        return int(self.errors.shape[1])

    def round(self, shard: int, gradient: Array, lo: int, hi: int) -> None:
        """Round elements [lo, hi) of a shard's `gradient` (P,) in place. Each once a step."""
        pending = self._pending.get(shard)
        left = np.empty_like(gradient) if pending is None else pending
        round_with_feedback(gradient[lo:hi], self.errors[shard, lo:hi], left[lo:hi])

    def commit(self) -> None:
        """The step has been taken."""
        for shard, pending in self._pending.items():
            np.copyto(self.errors[shard], pending)
