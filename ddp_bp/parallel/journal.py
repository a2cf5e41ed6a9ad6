"""What each rank is doing to the shared state, noted where the ranks of its node can read it, so that they can go on.

A rank notes how far it is in a step, and before it changes a block of its slice in place, what the block was. So a
death at any instruction leaves every block as it was, as it is to be, or as its copy in the journal says. Nobody waits
for the journal; it is read only when a rank has died. Knows neither what a step computes nor which vectors are changed.

Writes of one process are seen by others in their order on x86, and on any processor once the writer is dead and the
kernel has said so.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ddp_bp.parallel.arena import Arena
from ddp_bp.parallel.communicator import Array, Bounds


class Stage(IntEnum):
    """How far a rank is in the step that it notes."""

    COMPUTING = 0
    READY = 1
    """Its partials and its row of the agreement are complete."""
    UPDATING = 2
    """It knows that all ranks were ready: from now on the step is taken, whoever dies. Sums may be on their way."""
    UPDATED = 3
    """Its slice has been updated to the end."""
    COMMITTED = 4
    """It knows that all slices have been."""


# The last three: how many elements of the slice are done, where the block begins that is being changed, and how many
# are done with that.
_STEP, _STAGE, _DONE, _FIRST, _LAST = range(5)
_NUM_NOTES = 5

JOURNAL = "journal"
"""What the memory is called that the notes lie in."""
NOTE_BYTES = _NUM_NOTES * np.dtype(np.int64).itemsize
"""How many bytes a rank's notes take; those of the ranks of a node lie one after another."""


def num_committed_steps(notes: bytes) -> int:
    """How many steps are committed, by a copy of what the ranks of a node have noted, for who watches from outside.

    One less may come out for as long as a rank begins a step. Zeros after the last rank's notes change nothing.
    """
    rows = np.frombuffer(notes, np.int64).reshape(-1, _NUM_NOTES)
    return int((rows[:, _STEP] + (rows[:, _STAGE] == Stage.COMMITTED)).max())


class Protection(NamedTuple):
    """A block of the state, `size` elements from `first` on: what is to be copied where before it is changed."""

    first: int
    size: int
    copies: list[tuple[Array, Array]]


class Journal:
    """What the ranks of a node note. Construct on all ranks alike; nothing else here is collective."""

    def __init__(
        self,
        arena: Arena,
        row_bytes: int,
        num_vectors: int,
        block_elements: int,
        dtype: npt.DTypeLike,
        position: tuple[int, Stage] = (-1, Stage.COMMITTED),
        *,
        keeps_blocks: bool = True,
    ) -> None:
        """Collective.

        Args:
            row_bytes: the size of a rank's row of the agreement, which is kept here.
            num_vectors: how many vectors a block of the state has.
            block_elements: the most elements that are changed at once, on any rank.
            position: where all ranks begin.
            keeps_blocks: whether others will go on if a rank dies, and so must know what a block was.
        """
        communicator, nodes = arena.communicator, arena.nodes
        self._ranks = nodes.ranks[nodes.node_of_rank[communicator.rank]]
        count, place = len(self._ranks), self._ranks.index(communicator.rank)
        self._notes = arena.allocate(JOURNAL, (count, _NUM_NOTES), np.int64)
        self._rows = arena.allocate("rows", (count, row_bytes), np.uint8)
        self._keeps_blocks = keeps_blocks and communicator.can_lose_ranks and communicator.size > 1
        shape = (count, num_vectors, block_elements if self._keeps_blocks else 0)
        self._blocks = arena.allocate("undo", shape, dtype)
        self._own, self._own_block = self._notes[place], self._blocks[place]
        self.row = self._rows[place]
        """This rank's row of the agreement."""
        self._own[:] = *position, 0, 0, 0
        communicator.barrier()

    # ---- writing

    def note(self, step: int, stage: Stage) -> None:
        """This rank is now at that stage of that step."""
        # In between, it is at no stage from which others could finish the step.
        self._own[_STAGE] = Stage.COMPUTING
        self._own[_STEP] = step
        self._own[_STAGE] = stage

    def begin_slice(self) -> None:
        """From here on elements of this rank's slice will be changed in place, one block after another."""
        self._own[_LAST] = self._own[_DONE] = 0
        self._own[_STAGE] = Stage.UPDATING

    def protection(self, lo: int, hi: int, vectors: Sequence[Array]) -> Protection:
        """What `protect` takes for elements [lo, hi) of `vectors`, found once for many steps."""
        if not self._keeps_blocks:
            return Protection(lo, hi - lo, [])
        copies = [(copy[: hi - lo], vector[lo:hi]) for copy, vector in zip(self._own_block, vectors, strict=True)]
        return Protection(lo, hi - lo, copies)

    def protect(self, block: Protection) -> None:
        """Keep the elements of `block`, which are about to be changed: those whose turn it is."""
        if not block.copies:
            return
        for copy, original in block.copies:
            np.copyto(copy, original)
        self._own[_FIRST] = block.first
        # Only this makes the block one that is being changed.
        self._own[_LAST] = self._own[_DONE] + block.size

    def finish_block(self, num_elements: int) -> None:
        """So many elements of this rank's slice more, in the order of its update, have their new values."""
        self._own[_DONE] += num_elements

    # ---- reading, once a rank has died

    def position(self, rank: int) -> tuple[int, Stage]:
        """The step and stage that a rank of this node has noted last."""
        notes = self._notes[self._ranks.index(rank)]
        return int(notes[_STEP]), Stage(int(notes[_STAGE]))

    def row_of(self, rank: int) -> bytes:
        """The row of the agreement of a rank of this node, at or after READY."""
        return bytes(self._rows[self._ranks.index(rank)])

    def undo_block(self, rank: int, vectors: Sequence[Array]) -> None:
        """Give the block that a dead rank was changing its old values. To be called by one rank, when others wait."""
        place = self._ranks.index(rank)
        _, _, done, first, last = self._notes[place].tolist()
        size = last - done
        if size > 0:
            for copy, vector in zip(self._blocks[place], vectors, strict=True):
                vector[first : first + size] = copy[:size]

    def left_over(self, rank: int, order: Sequence[Bounds]) -> list[Bounds]:
        """What of a rank's slice has not been updated in the step at which it is UPDATING.

        `order`: the pieces of the slice in the order of its update.
        """
        done, rest = int(self._notes[self._ranks.index(rank), _DONE]), []
        for lo, hi in order:
            skipped = min(done, hi - lo)
            done -= skipped
            if lo + skipped < hi:
                rest.append((lo + skipped, hi))
        return rest
