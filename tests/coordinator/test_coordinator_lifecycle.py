from __future__ import annotations

from itertools import product

import pytest

from ddp_bp.coordinator.lifecycle import ENDED, Signal, State, advance

W, T, S, D, F = State.WAITING, State.TRAINING, State.STOPPING, State.FINISHED, State.FAILED

# One row for each state, one column for each signal.
EXPECTED = {
    W: {Signal.ALL_JOINED: T, Signal.STOP_ASKED: S, Signal.TRAINED: D, Signal.BROKE: F},
    T: {Signal.ALL_JOINED: T, Signal.STOP_ASKED: S, Signal.TRAINED: D, Signal.BROKE: F},
    S: {Signal.ALL_JOINED: S, Signal.STOP_ASKED: S, Signal.TRAINED: D, Signal.BROKE: F},
    D: {Signal.ALL_JOINED: D, Signal.STOP_ASKED: D, Signal.TRAINED: D, Signal.BROKE: D},
    F: {Signal.ALL_JOINED: F, Signal.STOP_ASKED: F, Signal.TRAINED: F, Signal.BROKE: F},
}


@pytest.mark.parametrize(("state", "signal"), list(product(State, Signal)), ids=lambda one: one.value)
def test_every_signal_in_every_state(state: State, signal: Signal) -> None:
    assert advance(state, signal) is EXPECTED[state][signal]


def test_nothing_leads_out_of_an_end() -> None:
    assert {state for state in State if all(advance(state, signal) is state for signal in Signal)} == ENDED
