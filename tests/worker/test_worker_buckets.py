"""Steps whose gradients cross between nodes in buckets, during backward or after it: the bits of one rank alone."""

from __future__ import annotations

import dataclasses
import math
import threading
from typing import Any

import numpy as np
import pytest
from worker_cases import Broken, Case, assert_same, build_rank, classes, outcome

from ddp_bp import nn, optim
from ddp_bp.data import Dataset, ShardPlan
from ddp_bp.engine import Tensor
from ddp_bp.errors import RemoteError
from ddp_bp.parallel.bucket_choice import BucketChoice
from ddp_bp.parallel.threads import ThreadCommunicator, run_ranks
from ddp_bp.worker.failures import RankFailure

NUM_STEPS = 4
BACKGROUND, INLINE = BucketChoice(1024, True), BucketChoice(1024, False)


class Network(nn.Module):
    """Several pages of parameters, a buffer, dropout, a weight that is used twice, one that is frozen, one not used."""

    def __init__(self) -> None:
        self.first = nn.Linear(64, 64)
        self.norm = nn.BatchNorm1d(64)
        self.drop = nn.Dropout(0.2)
        self.unused = nn.Linear(20, 20)
        self.frozen = nn.Linear(64, 64)
        for parameter in self.frozen.parameters():
            parameter.requires_grad = False
        self.last = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        x = self.frozen(self.drop(self.first(x)).tanh())
        return self.last(x)


PLAN = ShardPlan(70, 16, 8, 3)
CASE = Case(classes(70, 64), Network, lambda p: optim.Adam(p, lr=0.01), PLAN, clip_norm=0.5, ema_decay=0.9)


def train(communicator: ThreadCommunicator, case: Case) -> tuple[dict[str, np.ndarray], list[Any]]:
    rank = build_rank(communicator, case)
    results = [rank.step.run(step) for step in range(NUM_STEPS)]
    rank.team.exchange.close()
    return rank.state(), [(result.loss, result.shard_results) for result in results]


@pytest.fixture(scope="module")
def alone() -> tuple[dict[str, np.ndarray], list[Any]]:
    [result] = run_ranks(1, lambda c: train(c, CASE))
    return result


NODES = [[0, 1], [0, 0, 1], [0, 1, 2], [0, 1, 0, 1], [0, 0, 1, 2, 2, 1, 0], list(range(7)), [*range(8), 0]]


@pytest.mark.parametrize("buckets", [BACKGROUND, INLINE, BucketChoice(10**6, True)], ids=["early", "late", "one"])
@pytest.mark.parametrize("nodes", NODES, ids=lambda nodes: "".join(map(str, nodes)))
def test_every_rank_holds_what_one_rank_alone_would(nodes: list[int], buckets: BucketChoice, alone: Any) -> None:
    """Optimizer state and average included: every node has all of it."""
    case = dataclasses.replace(CASE, nodes=nodes, buckets=buckets)
    for state, results in run_ranks(len(nodes), lambda c: train(c, case)):
        assert results == alone[1]
        assert_same(state, alone[0])


def test_sums_over_shards_in_the_middle_of_backward_still_work() -> None:
    build = lambda: nn.Sequential(nn.Linear(64, 40), nn.SyncBatchNorm(40), nn.ReLU(), nn.Linear(40, 3))  # noqa: E731
    case = dataclasses.replace(CASE, build=build)
    [(expected, _)] = run_ranks(1, lambda c: train(c, case))
    split = dataclasses.replace(case, nodes=[0, 1, 0], buckets=BACKGROUND)
    for state, _ in run_ranks(3, lambda c: train(c, split)):
        assert_same(state, expected)


def test_buckets_cross_before_backward_has_ended() -> None:
    """Backward of the first layer begins only when the sums of the last layer have come from the other node."""
    case = dataclasses.replace(
        Case(classes(70, 64), plan=PLAN, nodes=[0, 1], buckets=BACKGROUND),
        build=lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)),
    )

    def run(communicator: ThreadCommunicator) -> list[bool]:
        rank = build_rank(communicator, case)
        exchange = rank.team.exchange
        arrived, calls = threading.Event(), []
        send, release = exchange._used.exchange, exchange.release

        def counted(sends: Any, receives: Any) -> None:
            send(sends, receives)
            calls.append(len(sends))
            if len(calls) == 2:
                arrived.set()

        num_early: list[bool] = []

        def released() -> None:
            release()
            # The third of 9 buckets: those of the first layer are still to come.
            if exchange._num_released == 3:
                num_early.append(arrived.wait(10))

        exchange._used.exchange, exchange.release = counted, released
        rank.step.run(0)
        exchange.close()
        return num_early

    assert run_ranks(2, run) == [[True], [True]]


@pytest.mark.parametrize("buckets", [BACKGROUND, INLINE], ids=["early", "late"])
def test_a_rank_that_raises_lets_the_exchange_end_on_all(buckets: BucketChoice) -> None:
    case = dataclasses.replace(CASE, nodes=[0, 1, 1], buckets=buckets)

    def run(communicator: ThreadCommunicator) -> tuple[str, bool]:
        wrap = (lambda model: Broken(model, ValueError("boom"))) if communicator.rank == 1 else (lambda model: model)
        rank = build_rank(communicator, case, wrap=wrap)
        error = outcome(lambda: rank.step.run(0))
        ended = rank.team.exchange._thread is None
        rank.team.exchange.close()
        return type(error).__name__, ended

    assert run_ranks(3, run) == [
        (RemoteError.__name__, True), (RankFailure.__name__, True), (RemoteError.__name__, True),
    ]  # fmt: skip


def test_a_step_that_is_not_finite_is_skipped_and_the_next_one_is_taken() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((70, 64)).astype(np.float32)
    inputs[PLAN.epoch_order(0)[3]] = math.nan
    case = dataclasses.replace(CASE, dataset=Dataset(inputs, rng.integers(0, 3, 70)))
    [(expected, _)] = run_ranks(1, lambda c: train(c, case))
    split = dataclasses.replace(case, nodes=[0, 1, 0], buckets=BACKGROUND)
    for state, _ in run_ranks(3, lambda c: train(c, split)):
        assert_same(state, expected)


def test_one_copy_is_saved() -> None:
    case = dataclasses.replace(CASE, nodes=[0, 1, 1, 0], buckets=BACKGROUND)

    def run(communicator: ThreadCommunicator) -> tuple[int, int]:
        rank = build_rank(communicator, case)
        rank.team.exchange.close()
        return rank.bounds

    bounds = run_ranks(4, run)
    assert bounds[1][0] == bounds[1][1]
    assert bounds[2][0] == bounds[2][1]
    assert bounds[0][1] == bounds[3][0] > 0
