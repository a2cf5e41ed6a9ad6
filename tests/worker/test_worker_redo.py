"""Blocks whose rank has died in the middle of a write: whoever goes on gets the bits of an undisturbed step.

Here a write may be cut off after any of its elements, which in a real death is up to chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_bp import optim
from ddp_bp.engine import Parameter
from ddp_bp.engine.flat import FlatParameters
from ddp_bp.optim.block import Block
from ddp_bp.parallel.arena import Arena
from ddp_bp.parallel.journal import Begun, Journal, Stage
from ddp_bp.parallel.nodes import Nodes
from ddp_bp.parallel.threads import run_ranks
from ddp_bp.worker.redo import MarkedBlock, ResumedBlock, begun_at

RESUMABLE: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": lambda p: optim.SGD(p, lr=0.5),
    "SGD, momentum": lambda p: optim.SGD(p, lr=0.5, momentum=0.9, dampening=0.2, weight_decay=0.1),
    "SGD, nesterov": lambda p: optim.SGD(p, lr=0.5, momentum=0.9, nesterov=True, maximize=True),
    "Adam": lambda p: optim.Adam(p, lr=0.01),
    "Adam, all": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True, maximize=True),
    "AdamW": lambda p: optim.AdamW(p, lr=0.01),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.01),
    "RMSprop, all": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True, weight_decay=0.1),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.1, weight_decay=0.1),
    "NAdam": lambda p: optim.NAdam(p, weight_decay=0.1),
    "NAdam, decoupled": lambda p: optim.NAdam(p, weight_decay=0.1, decoupled_weight_decay=True),
    "Lion": lambda p: optim.Lion(p, lr=0.001),
    "Lion, decay": lambda p: optim.Lion(p, lr=0.001, weight_decay=0.1),
}


class Died(Exception):
    """A rank that does nothing more."""


class Death(NamedTuple):
    """In the write of that number: before its mark, after so many of its elements, or (-1) right after it."""

    write: int
    is_marked: bool
    num_elements: int


class MortalBlock(MarkedBlock):
    """Dies in one of its writes."""

    __slots__ = ("death",)
    death: Death | None

    def set_(self, target: np.ndarray) -> None:
        self._write(target, self.scratch.copy(), super().set_)

    def set_sum_(self, target: np.ndarray) -> None:
        self._write(target, self.other + self.scratch, super().set_sum_)

    def set_difference_(self, target: np.ndarray) -> None:
        self._write(target, self.other - self.scratch, super().set_difference_)

    def _write(self, target: np.ndarray, values: np.ndarray, write: Callable[[np.ndarray], None]) -> None:
        death = self.death
        if death is None or death.write != self.num_writes:
            write(target)
            return
        if death.num_elements < 0:
            write(target)
        elif death.is_marked:
            self._journal.mark(2 * self.num_writes + 1)
            target[: death.num_elements] = values[: death.num_elements]
        raise Died


DEATHS = st.none() | st.builds(Death, st.integers(0, 3), st.booleans(), st.integers(-1, 20))


def new_journals() -> list[Journal]:
    """Of two ranks of one node."""
    return run_ranks(2, lambda comm: Journal(Arena(comm, Nodes([0, 0])), 8, 0, 32, np.float32))


def state_of(optimizer: optim.Optimizer) -> list[np.ndarray]:
    return [optimizer.flat.data, *optimizer.state.values()]


@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("name", RESUMABLE)
@given(size=st.integers(2, 20), num_steps=st.integers(0, 2), first=DEATHS, second=DEATHS, data=st.data())
def test_others_go_on_wherever_a_write_was_cut_off(
    name: str, size: int, num_steps: int, first: Death | None, second: Death | None, data: st.DataObject
) -> None:
    """One rank dies in a block, two others take half of it each, one of which may die as well."""
    random = np.random.default_rng(size)
    optimizer = RESUMABLE[name](FlatParameters([Parameter(random.standard_normal(size).astype(np.float32))]))
    gradients = random.standard_normal((num_steps + 1, size)).astype(np.float32)
    for gradient in gradients[:-1]:
        optimizer.update(0, size, gradient.copy())
        optimizer.advance()
    before = [vector.copy() for vector in state_of(optimizer)]
    optimizer.update(0, size, gradients[-1].copy())
    expected = [vector.copy() for vector in state_of(optimizer)]
    for vector, old in zip(state_of(optimizer), before, strict=True):
        vector[:] = old

    def run(journal: Journal, lo: int, hi: int, death: Death | None, begun: list[Begun]) -> None:
        def make(first: int, parameters: np.ndarray, state: dict[str, np.ndarray]) -> Block:
            block = MortalBlock(parameters, state, journal, first, first - lo)
            block.death = death
            piece = begun_at(begun, first)
            return block if piece is None else ResumedBlock(block, first, piece)

        gradient = gradients[-1, lo:hi].copy()
        optimizer.update_pieces(optimizer.pieces(lo, hi, make), optimizer.rules(), gradient)
        journal.finish(hi - lo)

    begun: list[Begun] = []
    for death in (first, second):
        journals = new_journals()
        journals[1].begin_slice(3)
        half = data.draw(st.integers(1, size - 1)) if begun else size
        try:
            for lo, hi in ((0, half), (half, size))[: 1 if half == size else 2]:
                run(journals[1], lo, hi, death if hi == size else None, begun)
            break
        except Died:
            pieces = [(0, half), (half, size)] if half < size else [(0, size)]
            left = journals[0].left_over(1, pieces)
            assert left == pieces[-1:]
            piece = journals[0].begun(1)
            begun = [*([piece] if piece is not None else []), *begun]
    else:
        [(lo, hi)] = left
        run(new_journals()[1], lo, hi, None, begun)
    for vector, wanted in zip(state_of(optimizer), expected, strict=True):
        np.testing.assert_array_equal(vector, wanted)


def test_every_optimizer_that_says_so_is_tried() -> None:
    kinds = {getattr(optim, name) for name in optim.__all__}
    resumable = {
        kind.__name__
        for kind in kinds
        if isinstance(kind, type) and issubclass(kind, optim.Optimizer) and kind.can_resume and kind.checks
    }
    assert resumable == {name.partition(",")[0] for name in RESUMABLE}


def test_a_piece_of_which_nothing_is_marked_has_not_begun() -> None:
    journals = new_journals()
    journals[1].note(3, Stage.READY)
    journals[1].begin_slice(3)
    journals[1].begin_piece(4, 6, offset=2)
    assert journals[0].begun(1) is None
    assert journals[0].left_over(1, [(2, 12)]) == [(4, 12)]
    journals[1].mark(3)
    begun = journals[0].begun(1)
    assert begun is not None
    assert begun[:4] == (4, 10, 1, True)
    assert begun.scratch.shape == (2, 6)
    assert journals[0].left_over(1, [(2, 12)]) == [(4, 10), (10, 12)]
    journals[1].finish(8)
    assert journals[0].begun(1) is None
    assert journals[0].left_over(1, [(2, 12)]) == [(10, 12)]
