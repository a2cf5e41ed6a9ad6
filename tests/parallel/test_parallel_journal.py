"""What a rank notes of its slice while it changes it: what of it is left over, and what a block was."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ddp_bp.parallel.arena import Arena
from ddp_bp.parallel.communicator import Bounds
from ddp_bp.parallel.journal import Journal, Stage
from ddp_bp.parallel.nodes import Nodes
from ddp_bp.parallel.threads import ThreadCommunicator, run_ranks

BLOCK = 4


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=5),
    st.data(),
)
def test_what_is_left_over_is_what_was_not_changed_in_any_order(
    gaps: list[tuple[int, int]], data: st.DataObject
) -> None:
    """A rank dies after any number of blocks, and in the middle of one or not."""
    pieces: list[Bounds] = []
    end = 0
    for gap, length in gaps:
        pieces.append((end + gap, end + gap + length))
        end += gap + length
    order = data.draw(st.permutations(pieces))
    blocks = [(at, min(at + BLOCK, hi)) for lo, hi in order for at in range(lo, hi, BLOCK)]
    num_blocks = data.draw(st.integers(0, len(blocks)))
    dies_within = data.draw(st.booleans()) and num_blocks < len(blocks)

    def run(comm: ThreadCommunicator) -> None:
        journal = Journal(Arena(comm, Nodes([0, 0])), 8, 2, BLOCK, np.float32)
        vectors = [np.zeros(end, np.float32), np.arange(end, dtype=np.float32)]
        before = [vector.copy() for vector in vectors]
        if comm.rank == 1:
            # What an earlier step has left in the notes means nothing.
            journal.copy_piece(0, min(end, BLOCK), vectors)
            journal.finish(end)
            journal.begin_slice(3)
        comm.barrier()
        assert comm.rank == 0 or journal.left_over(1, order) == list(order)
        done = blocks[:num_blocks]
        if comm.rank == 1:
            for lo, hi in done:
                journal.copy_piece(lo, hi, vectors)
                for vector in vectors:
                    vector[lo:hi] = -1
                journal.finish(hi - lo)
            if dies_within:
                lo, hi = blocks[num_blocks]
                journal.copy_piece(lo, hi, vectors)
                for vector in vectors:
                    vector[lo : lo + (hi - lo) // 2 + 1] = -1
        told = comm.allgather_bytes(b"".join(vector.tobytes() for vector in vectors))[1]
        vectors = list(np.frombuffer(told, np.float32).reshape(2, end).copy())
        if comm.rank == 1:
            return
        assert journal.position(1)[1] is Stage.UPDATING
        journal.undo_piece(1, vectors)
        left = {at for lo, hi in journal.left_over(1, order) for at in range(lo, hi)}
        changed = {at for lo, hi in done for at in range(lo, hi)}
        assert left == {at for lo, hi in order for at in range(lo, hi)} - changed
        for vector, old in zip(vectors, before, strict=True):
            expected = [-1 if at in changed else old[at] for at in range(end)]
            np.testing.assert_array_equal(vector, expected)

    run_ranks(2, run)


class Stores:
    """Notes of a rank that remember which of them were stored, in order."""

    def __init__(self, notes: memoryview) -> None:
        self._notes = notes
        self.places: list[int] = []

    def __setitem__(self, place: int, value: int) -> None:
        self.places.append(place)
        self._notes[place] = value


def test_a_death_finds_either_the_position_of_before_or_the_next() -> None:
    """Whatever is stored in several parts can be seen in parts."""
    journals = run_ranks(2, lambda comm: Journal(Arena(comm, Nodes([0, 0])), 8, 0, BLOCK, np.float32))
    journals[1]._own = stores = Stores(journals[1]._own)  # type: ignore[assignment]
    for step, stage in ((0, Stage.COMPUTING), (2**40, Stage.READY), (5, Stage.UPDATED), (5, Stage.COMMITTED)):
        stores.places.clear()
        journals[1].note(step, stage)
        assert len(stores.places) == 1
        assert journals[0].position(1) == (step, stage)
    [place] = stores.places
    stores.places.clear()
    journals[1].begin_slice(6)
    assert stores.places.index(place) == len(stores.places) - 1, (
        "what is left over of the step before is forgotten first"
    )
    assert journals[0].position(1) == (6, Stage.UPDATING)
