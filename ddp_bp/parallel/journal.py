"""What each rank is doing to the shared state, noted where the ranks of its node can read it, so that they can go on.

A rank notes how far it is in a step, and which piece of its slice it is changing in place. What a death in the middle
of that leaves is mended in one of two ways. Where new values are written one vector after another, out of memory that
lies here (scratch), others make the write again that was under way, and go on from there. Where they are not, the piece
is copied before, and gets back what it was. So a death at any instruction leaves every piece as it was, as it is to be,
or as the journal says. Nobody waits for the journal; it is read only when a rank has died. Knows neither what a step
computes nor which vectors are changed.

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


# Step and stage; how far the slice is; where the piece begins that is being changed, and how many elements it has. The
# first two say two things in one number each, so that neither is ever seen without the other: the step times 8 and the
# stage, and how many elements are done, times 32, and how far the piece is that comes after them (see `mark`).
_POSITION, _PROGRESS, _FIRST, _SIZE = range(4)
_STAGE_BITS, _MARK_BITS = 3, 5
# Ranks that write into the same line of the cache would wait for each other.
_NUM_NOTES = 8

JOURNAL = "journal"
"""What the memory is called that the notes lie in."""
_NUM_SCRATCH = 2

NOTE_BYTES = _NUM_NOTES * np.dtype(np.int64).itemsize
"""How many bytes a rank's notes take; those of the ranks of a node lie one after another."""


def num_committed_steps(notes: bytes) -> int:
    """How many steps are committed, by a copy of what the ranks of a node have noted, for who watches from outside.

    One less may come out for as long as a rank begins a step. Zeros after the last rank's notes change nothing.
    """
    positions = np.frombuffer(notes, np.int64).reshape(-1, _NUM_NOTES)[:, _POSITION].tolist()
    return max(step + (stage is Stage.COMMITTED) for step, stage in map(_position, positions))


class Begun(NamedTuple):
    """A piece [lo, hi) that was being changed when its rank died, `num_writes` of whose vectors have been written.

    is_writing: whether the next one was under way. It was made of `scratch` (2, hi - lo).
    """

    lo: int
    hi: int
    num_writes: int
    is_writing: bool
    scratch: Array


class Journal:
    """What the ranks of a node note. Construct on all ranks alike; nothing else here is collective."""

    def __init__(
        self,
        arena: Arena,
        row_bytes: int,
        num_copies: int,
        piece_elements: int,
        dtype: npt.DTypeLike,
        position: tuple[int, Stage] = (-1, Stage.COMMITTED),
        *,
        is_read: bool = True,
    ) -> None:
        """Collective.

        Args:
            row_bytes: the size of a rank's row of the agreement, which is kept here.
            num_copies: how many vectors are copied before a piece of them is changed; 0 if writes are made again.
            piece_elements: the most elements that are changed at once, on any rank.
            position: where all ranks begin.
            is_read: whether others will go on if a rank dies.
        """
        communicator, nodes = arena.communicator, arena.nodes
        self._ranks = nodes.ranks[nodes.node_of_rank[communicator.rank]]
        count, place = len(self._ranks), self._ranks.index(communicator.rank)
        self._notes = arena.allocate(JOURNAL, (count, _NUM_NOTES), np.int64)
        self._rows = arena.allocate("rows", (count, row_bytes), np.uint8)
        is_read = is_read and communicator.can_lose_ranks and communicator.size > 1
        self.copies = is_read and num_copies > 0
        """Whether pieces are to be copied before they are changed."""
        self.marks = is_read and not num_copies
        """Whether they are to be changed out of `scratch`, with a mark before and after each write."""
        shape = (count, num_copies or _NUM_SCRATCH, piece_elements if is_read else 0)
        self._pieces = arena.allocate("pieces", shape, dtype)
        self.scratch: Array = self._pieces[place]
        """(2, piece_elements), where others see it when this rank has died; without `marks` not to be used."""
        self._own = self._notes[place].data
        self._num_done = self._base = 0
        self.row = self._rows[place]
        """This rank's row of the agreement."""
        self.note(*position)
        communicator.barrier()

    # ---- writing

    def note(self, step: int, stage: Stage) -> None:
        """This rank is now at that stage of that step."""
        self._own[_POSITION] = step << _STAGE_BITS | stage

    def begin_slice(self, step: int) -> None:
        """From here on elements of this rank's slice will be changed in place, one piece after another."""
        self._num_done = self._base = self._own[_PROGRESS] = 0
        self.note(step, Stage.UPDATING)

    def begin_piece(self, first: int, size: int, offset: int = 0) -> None:
        """The elements from `first` on, so many, are changed next; `offset` of those before in the order are done.

        That is, after those that are finished.
        """
        # Nothing of the piece counts before there is a mark.
        self._base = self._own[_PROGRESS] = self._num_done + offset << _MARK_BITS
        self._own[_FIRST] = first
        self._own[_SIZE] = size

    def mark(self, number: int) -> None:
        """How far the piece is: 2 n when n vectors are written, 2 n + 1 while the next is; or 1 once it is copied."""
        self._own[_PROGRESS] = self._base | number

    def copy_piece(self, lo: int, hi: int, vectors: Sequence[Array]) -> None:
        """Keep elements [lo, hi) of `vectors`, which are about to be changed."""
        self.begin_piece(lo, hi - lo)
        for copy, vector in zip(self.scratch, vectors, strict=True):
            np.copyto(copy[: hi - lo], vector[lo:hi])
        self.mark(1)

    def finish(self, num_elements: int) -> None:
        """So many elements of this rank's slice more, in the order of its update, have their new values."""
        self._num_done += num_elements
        self._own[_PROGRESS] = self._num_done << _MARK_BITS

    # ---- reading, once a rank has died

    def position(self, rank: int) -> tuple[int, Stage]:
        """The step and stage that a rank of this node has noted last."""
        return _position(int(self._notes[self._ranks.index(rank), _POSITION]))

    def row_of(self, rank: int) -> bytes:
        """The row of the agreement of a rank of this node, at or after READY."""
        return bytes(self._rows[self._ranks.index(rank)])

    def undo_piece(self, rank: int, vectors: Sequence[Array]) -> None:
        """Give the piece that a dead rank was changing its old values. To be called by one rank, when others wait.

        Nothing is to be done where writes are made again.
        """
        place = self._ranks.index(rank)
        _, mark = self._progress(rank)
        if self.copies and mark:
            first, size = self._notes[place, [_FIRST, _SIZE]].tolist()
            for copy, vector in zip(self._pieces[place], vectors, strict=True):
                vector[first : first + size] = copy[:size]

    def begun(self, rank: int) -> Begun | None:
        """The piece that a rank, at UPDATING, has begun to write and has not finished."""
        _, mark = self._progress(rank)
        if not self.marks or not mark:
            return None
        place = self._ranks.index(rank)
        first, size = self._notes[place, [_FIRST, _SIZE]].tolist()
        return Begun(first, first + size, mark // 2, bool(mark % 2), self._pieces[place, :, :size])

    def left_over(self, rank: int, order: Sequence[Bounds]) -> list[Bounds]:
        """What of a rank's slice has not been updated to the end in the step at which it is UPDATING.

        `order`: the pieces of the slice in the order of its update. What is `begun` is an entry of its own.
        """
        (done, _), begun, rest = self._progress(rank), self.begun(rank), []
        for lo, hi in order:
            skipped = min(done, hi - lo)
            done -= skipped
            lo += skipped
            if begun is not None and lo < hi:
                rest.append((lo, begun.hi))
                lo, begun = begun.hi, None
            if lo < hi:
                rest.append((lo, hi))
        return rest

    def _progress(self, rank: int) -> tuple[int, int]:
        """How many elements of a rank's slice are done, and the mark of the piece after them."""
        progress = int(self._notes[self._ranks.index(rank), _PROGRESS])
        return progress >> _MARK_BITS, progress & (1 << _MARK_BITS) - 1


def _position(note: int) -> tuple[int, Stage]:
    return note >> _STAGE_BITS, Stage(note & (1 << _STAGE_BITS) - 1)
