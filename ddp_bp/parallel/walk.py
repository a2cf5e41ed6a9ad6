"""Summing vectors along the reduction tree, a block at a time. Pure arithmetic: knows no ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ddp_bp.parallel.communicator import Array
from ddp_bp.parallel.tree import Node, merge_counts, stack_depth

# Elements of one block of a walk: 256 KiB of float32, so that a few partials of it stay in a 1 MiB L2 cache.
BLOCK_ELEMENTS = 65536


class Walk:
    """Sums pieces that stand for tree nodes, as far as these are children of one node."""

    def __init__(self, nodes: Sequence[Node], num_leaves: int, num_elements: int, dtype: npt.DTypeLike) -> None:
        """`num_elements`: the length of the vectors that will be cut into blocks."""
        self._merges = merge_counts(nodes, num_leaves)
        self.has_sums = any(self._merges)
        """Whether there is anything to sum."""
        block = min(BLOCK_ELEMENTS, num_elements)
        self._scratch = np.empty((stack_depth(self._merges), block), dtype)

    def sums(self, pieces: Sequence[Array]) -> list[Array]:
        """What is left when all siblings among `pieces` (n,) are summed, n up to a block.

        A piece without a sibling is in the list itself; sums are in scratch memory until the next call.
        """
        stack: list[Array] = []
        for piece, num_merges in zip(pieces, self._merges, strict=True):
            stack.append(piece)
            for _ in range(num_merges):
                right = stack.pop()
                place = len(stack) - 1
                stack[place] = np.add(stack[place], right, out=self._scratch[place, : len(piece)])
        return stack

    def total(self, pieces: Sequence[Array]) -> Array:
        """The sum of all `pieces` (n,), which cover the tree, in scratch memory."""
        [total] = self.sums(pieces)
        if not self.has_sums:
            own: Array = self._scratch[0, : len(total)]
            np.copyto(own, total)
            return own
        return total
