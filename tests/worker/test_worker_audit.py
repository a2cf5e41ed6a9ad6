"""Audits with ranks as threads: nothing changes by them, and a rank that computes wrongly is named."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from worker_cases import Case, Rank, assert_same, build_rank, classes, network, outcome

from ddp_bp import nn, optim
from ddp_bp.data import ShardPlan
from ddp_bp.errors import DisagreementError, RemoteError
from ddp_bp.parallel.threads import run_ranks
from ddp_bp.worker.audit import Assignment
from ddp_bp.worker.failures import RankFailure


def synced() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.SyncBatchNorm(5), nn.Dropout(0.3), nn.Linear(5, 3))


PLAIN = Case(classes(34, 6), lambda: network(6, 5, 3, dropout=0.3), lambda p: optim.Adam(p, lr=0.05))
SYNCED = Case(classes(34, 6), synced, lambda p: optim.Adam(p, lr=0.05), ShardPlan(34, 17, 4, 7))
CASES = pytest.mark.parametrize("case", [PLAIN, SYNCED], ids=["one after another", "side by side"])


def audited(case: Case) -> Case:
    return dataclasses.replace(case, audit=1.0)


@CASES
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_computing_everything_twice_changes_no_bit(case: Case, size: int) -> None:
    def train(communicator, case: Case) -> Rank:
        rank = build_rank(communicator, case)
        for step in range(5):
            rank.step.run(step)
        return rank

    expected = run_ranks(1, lambda c: train(c, case))[0]
    for rank in run_ranks(size, lambda c: train(c, audited(case))):
        assert rank.parameters.data.tobytes() == expected.parameters.data.tobytes()
        assert [v.tobytes() for v in rank.buffers.committed] == [v.tobytes() for v in expected.buffers.committed]


def assignments(size: int, fraction: float, num_steps: int, num_shards: int = 4) -> list[list[Assignment]]:
    plan = ShardPlan(400, 40, num_shards, 7)
    case = Case(classes(400, 6), plan=plan, audit=fraction)
    found = run_ranks(size, lambda c: [build_rank(c, case).audit.assignments(step) for step in range(num_steps)])
    assert all(each == found[0] for each in found), "all ranks must know the same"
    return found[0]


def test_all_ranks_know_who_audits_whom_and_nobody_audits_itself() -> None:
    for step in assignments(3, 1.0, 20):
        assert [(shard, owner) for shard, owner, _ in step] == [(0, 0), (1, 1), (2, 2), (3, 2)]
        assert all(owner != auditor for _, owner, auditor in step)
    auditors = {(owner, auditor) for step in assignments(3, 1.0, 20) for _, owner, auditor in step}
    assert len(auditors) == 6, "each is audited by each other"
    assert assignments(1, 1.0, 1)[0][0] == Assignment(0, 0, 0)


def test_the_fraction_is_that_of_all_shards_and_the_same_shards_for_any_number_of_ranks() -> None:
    found = assignments(2, 0.25, 100, num_shards=40)
    assert 800 < sum(map(len, found)) < 1200, "a binomial of 4,000 with p = 1/4 has a deviation of 27"
    shards = [[shard for shard, _, _ in step] for step in found]
    assert shards == [[shard for shard, _, _ in step] for step in assignments(5, 0.25, 100, num_shards=40)]
    assert len(set(map(tuple, shards))) > 90, "other shards in each step"
    assert assignments(2, 0.0, 3) == [[], [], []]


class Wrong(nn.Module):
    """Its outputs are wrong in the last bits."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def forward(self, x: Any) -> Any:
        return self.model(x) * (1.0 + 2.0**-22)


@CASES
@pytest.mark.parametrize(("size", "culprit"), [(2, 0), (2, 1), (3, 0), (3, 1), (4, 3)])
def test_a_rank_that_computes_wrongly_is_named_on_all_ranks_before_anything_changes(
    case: Case, size: int, culprit: int
) -> None:
    def run(communicator):
        wrap = Wrong if communicator.rank == culprit else (lambda model: model)
        rank = build_rank(communicator, audited(case), wrap=wrap)
        before = rank.state()
        raised = outcome(lambda: rank.step.run(0))
        assert_same(rank.state(), before)
        return raised

    errors = run_ranks(size, run)
    assert {type(error) for error in errors} == {DisagreementError}
    assert len({str(error) for error in errors}) == 1
    text = str(errors[0])
    assert "audit of step 0, shard " in text and "sample ids [" in text
    if size == 2:
        assert "One of ranks" in text and "rank 0 on" in text and "rank 1 on" in text
    else:
        assert f"Rank {culprit} computes wrongly" in text


class Drifting(nn.Module):
    """Gives something else each time, as a machine with a bad memory might."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.num_calls = model, 0

    def forward(self, x: Any) -> Any:
        self.num_calls += 1
        return self.model(x) * (1.0 + self.num_calls / 8)


def test_a_job_of_one_rank_audits_itself() -> None:
    [error] = run_ranks(1, lambda c: outcome(lambda: build_rank(c, audited(PLAIN), wrap=Drifting).step.run(0)))
    assert isinstance(error, DisagreementError)
    assert "rank 0" in str(error)


class RaisingLater(nn.Module):
    """Computes its own shards and raises at the first one more."""

    def __init__(self, model: nn.Module, num_calls: int) -> None:
        self.model, self.num_calls = model, num_calls

    def forward(self, x: Any) -> Any:
        self.num_calls -= 1
        if self.num_calls < 0:
            raise ArithmeticError("no more")
        return self.model(x)


def test_an_auditor_that_raises_stops_all() -> None:
    def run(communicator):
        wrap = (lambda model: RaisingLater(model, 2)) if communicator.rank == 1 else (lambda model: model)
        return outcome(lambda: build_rank(communicator, audited(PLAIN), wrap=wrap).step.run(0))

    first, second = run_ranks(2, run)
    assert isinstance(first, RemoteError) and isinstance(second, RankFailure)
    assert isinstance(second.error, ArithmeticError)


class NotANumber(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def forward(self, x: Any) -> Any:
        return self.model(x) * float("nan")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_not_finite_on_owner_and_auditor_is_no_difference() -> None:
    results = run_ranks(2, lambda c: build_rank(c, audited(PLAIN), wrap=NotANumber).step.run(0))
    assert [result.nonfinite_shards for result in results] == [(0, 1, 2, 3)] * 2
    assert np.isnan(results[0].loss)
