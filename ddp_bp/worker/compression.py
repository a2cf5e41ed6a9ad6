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
        self._errors, self.own_shards = errors, tuple(own_shards)
        # A step that is skipped must leave everything as it was: of two vectors, each step reads one, writes the other.
        self._homes = {shard: errors[shard] for shard in own_shards}
        self._taken = dict(self._homes)
        self._left = {shard: np.zeros_like(home) for shard, home in self._homes.items()}

    @property
    def num_elements(self) -> int:
        """P: what follows a gradient in its vector is not rounded."""
        return int(self._errors.shape[1])

    def settle(self) -> Array:
        """(V, P), by shard what rounding has taken away by now, those of this rank's shards brought up to date."""
        for shard, home in self._homes.items():
            taken = self._taken[shard]
            if taken is not home:
                np.copyto(home, taken)
                self._taken[shard], self._left[shard] = home, taken
        return self._errors

    def round(self, shard: int, gradient: Array, lo: int, hi: int) -> None:
        """Round elements [lo, hi) of a shard's `gradient` (P,) in place. Each once a step."""
        taken, left = self._taken.get(shard), self._left.get(shard)
        if taken is None or left is None:
            taken, left = self._errors[shard], np.empty_like(gradient)
        round_with_feedback(gradient[lo:hi], taken[lo:hi], left[lo:hi])

    def commit(self) -> None:
        """The step has been taken."""
        self._taken, self._left = self._left, self._taken
