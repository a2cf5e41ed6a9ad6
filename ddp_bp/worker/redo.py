"""Blocks that other ranks can finish where the one that was changing them has died, without a copy of what they were.

A rule works out each new value in scratch memory (`optim.block`). That of the blocks here lies in the journal, and a
mark there says which write is under way, so that whoever goes on can make just that write again, whatever part of it
was done, and run the rule for the rest. A copy is needed only for what is added to in place, like the parameters. Knows
neither ranks nor what a rule computes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ddp_bp.engine.ops.operation import Array
from ddp_bp.optim.block import Block
from ddp_bp.parallel.journal import Begun, Journal


class MarkedBlock(Block):
    """A block of a rank's slice whose writes are marked in the rank's journal."""

    __slots__ = ("_first", "_journal", "_offset", "num_writes")

    def __init__(self, parameters: Array, state: dict[str, Array], journal: Journal, first: int, offset: int) -> None:
        """`first`: its first element; `offset`: how many elements of the part that is updated come before."""
        scratch, other = journal.scratch[:, : len(parameters)]
        super().__init__(parameters, scratch, other, state)
        self._journal, self._first, self._offset = journal, first, offset
        self.num_writes = 0
        """How many writes were made, of this step and for good."""

    def begin(self, gradient: Array) -> None:
        self.gradient = gradient
        self.num_writes = 0
        self._journal.begin_piece(self._first, len(self.parameters), self._offset)

    def set_(self, target: Array) -> None:
        # What a write is made of must not be what it changes, or it could not be made again.
        self._begin_write()
        super().set_(target)
        self._finish_write()

    def add_(self, target: Array) -> None:
        np.add(target, self.scratch, out=self.scratch)
        self.set_(target)

    def subtract_(self, target: Array) -> None:
        np.subtract(target, self.scratch, out=self.scratch)
        self.set_(target)

    def set_sum_(self, target: Array) -> None:
        self._begin_write()
        super().set_sum_(target)
        self._finish_write()

    def set_difference_(self, target: Array) -> None:
        self._begin_write()
        super().set_difference_(target)
        self._finish_write()

    def _begin_write(self) -> None:
        self._journal.mark(2 * self.num_writes + 1)

    def _finish_write(self) -> None:
        self.num_writes += 1
        self._journal.mark(2 * self.num_writes)


class ResumedBlock(Block):
    """A block that another rank has begun: leaves out the writes that were made, and makes again what was under way."""

    __slots__ = ("_begun", "_block", "_number")

    def __init__(self, block: Block, first: int, begun: Begun) -> None:
        """`block`: how it would be written if nobody had begun it; `first`: its first element."""
        super().__init__(block.parameters, block.scratch, block.other, block.state)
        lo = first - begun.lo
        self._block, self._number = block, 0
        self._begun = begun._replace(scratch=begun.scratch[:, lo : lo + len(block.parameters)])

    def begin(self, gradient: Array) -> None:
        self._block.begin(gradient)
        self.gradient = gradient
        self._number = 0
        if isinstance(self._block, MarkedBlock):
            # Until there is a mark of its own, it is as far as the other rank has left it.
            self._block.num_writes = self._begun.num_writes

    def set_(self, target: Array) -> None:
        if self._is_next():
            self._block.set_(target)

    def add_(self, target: Array) -> None:
        if self._is_again():
            # The other rank had added already: its scratch has the sum.
            self.set_(target)
        elif self._is_next():
            self._block.add_(target)

    def subtract_(self, target: Array) -> None:
        if self._is_again():
            self.set_(target)
        elif self._is_next():
            self._block.subtract_(target)

    def set_sum_(self, target: Array) -> None:
        if self._is_next():
            self._block.set_sum_(target)

    def set_difference_(self, target: Array) -> None:
        if self._is_next():
            self._block.set_difference_(target)

    def _is_again(self) -> bool:
        """Whether the next write is the one that was under way."""
        return self._begun.is_writing and self._number == self._begun.num_writes

    def _is_next(self) -> bool:
        """Whether a write is to be made; what it is made of is in scratch memory then."""
        is_again = self._is_again()
        self._number += 1
        if is_again:
            self.scratch[:], self.other[:] = self._begun.scratch
        return self._number > self._begun.num_writes


def begun_at(begun: Iterable[Begun], element: int) -> Begun | None:
    """Which of them has that element."""
    return next((piece for piece in begun if piece.lo <= element < piece.hi), None)
