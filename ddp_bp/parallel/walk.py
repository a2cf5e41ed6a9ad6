"""Summing vectors along the reduction tree, a block at a time. Pure arithmetic: knows no ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ddp_bp.parallel.apart import allocate_apart
from ddp_bp.parallel.bfloat16 import round_to_bfloat16
from ddp_bp.parallel.communicator import Array, Bounds
from ddp_bp.parallel.tree import Node, merge_counts, stack_depth

# Elements of one block of a walk: 128 KiB of float32, so that partials, parameters and optimizer state of it, and what
# undoes the block, stay in a 1 MiB L2 cache together.
BLOCK_ELEMENTS = 32768

Addition = tuple[Array, Array, Array]


class PlannedBlock(NamedTuple):
    """How elements [lo, hi) are summed: `additions` (left, right, result) in order, whose last result is `total`.

    Without any, `total` is to be filled from `source`, or is the only vector itself if that is None. `num_rounded`: how
    many elements of each sum are rounded to bfloat16.
    """

    lo: int
    hi: int
    additions: list[Addition]
    source: Array | None
    total: Array
    num_rounded: int = 0

    def into(self, target: Array) -> PlannedBlock:
        """The same with its total in `target` (N,)."""
        total = target[self.lo : self.hi]
        if not self.additions:
            return self._replace(source=self.total if self.source is None else self.source, total=total)
        left, right, _ = self.additions[-1]
        return self._replace(additions=[*self.additions[:-1], (left, right, total)], total=total)


class Walk:
    """Sums pieces that stand for tree nodes, as far as these are children of one node."""

    def __init__(
        self,
        nodes: Sequence[Node],
        num_leaves: int,
        num_elements: int,
        dtype: npt.DTypeLike,
        num_rounded: int = 0,
    ) -> None:
        """
        Args:
            num_elements: the length of the vectors that will be cut into blocks.
            num_rounded: sums over elements below this are rounded to bfloat16, wherever they are made.
        """
        self._num_rounded = num_rounded
        self._merges = merge_counts(nodes, num_leaves)
        self.has_sums = any(self._merges)
        """Whether there is anything to sum."""
        block = min(BLOCK_ELEMENTS, num_elements)
        self._scratch = allocate_apart((stack_depth(self._merges), block), dtype)

    def sums(self, pieces: Sequence[Array], lo: int = 0) -> list[Array]:
        """What is left when all siblings among `pieces` (n,) are summed, n up to a block. `lo`: their first element.

        A piece without a sibling is in the list itself; sums are in scratch memory until the next call.
        """
        additions, results = self._additions(pieces)
        _add(additions, max(0, self._num_rounded - lo))
        return results

    def plan(
        self, vectors: Sequence[tuple[Array, int]], ranges: Sequence[Bounds], *, keeps: bool = True
    ) -> list[PlannedBlock]:
        """How to sum `vectors`, which cover the tree, over the elements of `ranges`: all that is left to do is to add.

        Args:
            vectors: each with the element that it begins with.
            keeps: whether totals lie in scratch memory even where there is only one vector, which may be used up
                otherwise.
        """
        blocks = []
        for first, last in ranges:
            for lo in range(first, last, BLOCK_ELEMENTS):
                hi = min(lo + BLOCK_ELEMENTS, last)
                additions, [total] = self._additions([vector[lo - origin : hi - origin] for vector, origin in vectors])
                source = None
                if not additions and keeps:
                    source, total = total, self._scratch[0, : hi - lo]
                blocks.append(PlannedBlock(lo, hi, additions, source, total, max(0, self._num_rounded - lo)))
        return blocks

    def _additions(self, pieces: Sequence[Array]) -> tuple[list[Addition], list[Array]]:
        additions: list[Addition] = []
        stack: list[Array] = []
        for piece, num_merges in zip(pieces, self._merges, strict=True):
            stack.append(piece)
            for _ in range(num_merges):
                right = stack.pop()
                place = len(stack) - 1
                result = self._scratch[place, : len(piece)]
                additions.append((stack[place], right, result))
                stack[place] = result
        return additions, stack


def total_of(block: PlannedBlock) -> Array:
    """Does the additions of a block; the sum (hi - lo,) over all vectors, valid until the next one."""
    _add(block.additions, block.num_rounded)
    if block.source is not None:
        np.copyto(block.total, block.source)
    return block.total


def _add(additions: Sequence[Addition], num_rounded: int) -> None:
    add = np.add
    for left, right, result in additions:
        add(left, right, result)
        if num_rounded:
            round_to_bfloat16(result[:num_rounded])
