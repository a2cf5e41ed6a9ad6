"""Comparing what the ranks hold, with ranks as threads that share no memory: a bit that flips is found and named."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from worker_cases import Case, Rank, build_rank, classes, outcome

from ddp_bp import nn, optim
from ddp_bp.errors import DisagreementError
from ddp_bp.parallel.threads import ThreadCommunicator, run_ranks


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


CASE = Case(
    classes(34, 6), network, lambda p: optim.Adam(p, lr=0.05), ema_decay=0.9, nodes=[0, 1, 2], compare_every_steps=2
)


def flip(array: np.ndarray) -> None:
    array.view(np.uint8)[-1] ^= 1


FAULTS: dict[str, tuple[str, Callable[[Rank], object]]] = {
    "a parameter": ("parameters", lambda rank: flip(rank.parameters.data)),
    "a buffer": ("buffers", lambda rank: flip(rank.buffers.committed[1])),
    "the optimizer's count": ("counters", lambda rank: setattr(rank.optimizer, "num_steps", 7)),
    "the average's count": ("counters", lambda rank: setattr(rank.average, "num_updates", 7)),
    "a rate": ("counters", lambda rank: rank.optimizer.param_groups[0].settings.update(lr=0.06)),
}


class Meddling(nn.Module):
    """Changes a parameter in every forward pass, as no model should."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def forward(self, x: Any) -> Any:
        next(self.parameters())._array[0] += 0.125
        return self.model(x)


def train(communicator: ThreadCommunicator, case: Case, break_one: Callable[[Rank], object] | None = None) -> Rank:
    """Three steps; on the last rank something breaks after the second one."""
    rank = build_rank(communicator, case)
    for step in range(3):
        if step == 2 and break_one is not None and communicator.rank == communicator.size - 1:
            break_one(rank)
        rank.step.run(step)
    return rank


def assert_named(errors: list, what: str, when: str) -> None:
    assert [type(error) for error in errors] == [DisagreementError] * 3
    text = str(errors[0])
    assert {str(error) for error in errors} == {text}
    assert f"{when} the ranks hold different {what}" in text
    assert "Most agree, but not rank 2 (node 2, " in text
    digests = re.findall("0x[0-9a-f]{16}", text)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("name", FAULTS)
def test_what_differs_is_named_with_the_rank_that_most_differ_from(name: str) -> None:
    what, break_one = FAULTS[name]
    errors = run_ranks(3, lambda c: outcome(lambda: train(c, CASE, break_one)))
    assert_named(errors, what, "before the update of step 2")


def test_a_model_that_changes_parameters_of_one_rank_is_found_though_the_update_would_write_over_them() -> None:
    def run(communicator):
        wrap = Meddling if communicator.rank == 2 else (lambda model: model)
        return outcome(lambda: build_rank(communicator, CASE, wrap=wrap).step.run(0))

    assert_named(run_ranks(3, run), "parameters", "before the update of step 0")


def test_of_two_ranks_both_are_named() -> None:
    errors = run_ranks(2, lambda c: outcome(lambda: train(c, CASE, FAULTS["a parameter"][1])))
    assert all("No more agree than not" in str(error) and str(error).count("0x") == 2 for error in errors)


def test_ranks_that_agree_go_on_and_none_is_asked_where_comparing_is_off() -> None:
    def compare(communicator, case, break_one=None):
        train(communicator, case, break_one).comparison.run("at the end")

    run_ranks(3, lambda c: compare(c, CASE))
    run_ranks(3, lambda c: compare(c, dataclasses.replace(CASE, compare_every_steps=0), FAULTS["a rate"][1]))
    run_ranks(3, lambda c: train(c, dataclasses.replace(CASE, compare_every_steps=5), FAULTS["a rate"][1]))
    # One node has one copy, and so no other to compare with.
    run_ranks(2, lambda c: compare(c, dataclasses.replace(CASE, nodes=[0, 0])))
    run_ranks(1, lambda c: compare(c, CASE, FAULTS["a parameter"][1]))
