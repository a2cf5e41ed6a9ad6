"""The update with ranks as threads: clipping, optimizers in two phases, the average of the weights, and buffers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from worker_cases import Case, Rank, assert_same, build_rank, classes, network

import ddp_bp as ddp
from ddp_bp import nn, optim
from ddp_bp.data import ShardPlan
from ddp_bp.parallel.threads import run_ranks
from ddp_bp.worker.step import StepResult

NUM_STEPS = 7
SIZES = (2, 3, 5)
# 8,095 parameters: several slices of 1,024, and parameters that are cut by their edges.
WIDE = Case(classes(35, 64), lambda: network(64, 119, 3), lambda p: optim.SGD(p, lr=0.5), ShardPlan(35, 8, 4, 3))
SMALL = Case(classes(35, 64), lambda: network(64, 5, 3), lambda p: optim.SGD(p, lr=0.5), ShardPlan(35, 8, 4, 3))
ONE_SHARD = ShardPlan(35, 8, 1, 3)


def train(communicator: Any, case: Case) -> tuple[Rank, list[StepResult]]:
    rank = build_rank(communicator, case)
    return rank, [rank.step.run(step) for step in range(NUM_STEPS)]


def own_state(rank: Rank) -> dict[str, np.ndarray]:
    """What this rank vouches for: all parameters and buffers, and its slice of everything else."""
    lo, hi = (min(edge, rank.parameters.size) for edge in rank.bounds)
    state = {**rank.optimizer.state, **(rank.average.state if rank.average else {})}
    buffers = dict(zip(rank.buffers.names, rank.buffers.committed, strict=True))
    return {"parameters": rank.parameters.data, **buffers} | {name: array[lo:hi] for name, array in state.items()}


def assert_same_on_any_number_of_ranks(case: Case) -> Rank:
    [(alone, expected)] = run_ranks(1, lambda c: train(c, case))
    whole = own_state(alone)
    for size in SIZES:
        for rank, results in run_ranks(size, lambda c: train(c, case)):
            lo, hi = (min(edge, rank.parameters.size) for edge in rank.bounds)
            sliced = {*rank.optimizer.state, "ema"}
            assert_same(own_state(rank), {name: a[lo:hi] if name in sliced else a for name, a in whole.items()})
            assert [result.loss for result in results] == [result.loss for result in expected]
    return alone


OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": lambda p: optim.SGD(p, lr=0.5, momentum=0.9),
    "Adam": lambda p: optim.Adam(p, lr=0.01),
    "AdamW": lambda p: optim.AdamW(p, lr=0.01),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.1),
    "Adadelta": lambda p: optim.Adadelta(p),
    "NAdam": lambda p: optim.NAdam(p),
    "Lion": lambda p: optim.Lion(p, lr=0.001),
    "LARS": lambda p: optim.LARS(p, lr=10.0, weight_decay=0.01),
    "LAMB": lambda p: optim.LAMB(p, lr=0.01, weight_decay=0.01),
}


@pytest.mark.parametrize("clip_norm", [None, 0.3], ids=["", "clipped"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_the_same_bits_on_any_number_of_ranks(name: str, clip_norm: float | None) -> None:
    assert_same_on_any_number_of_ranks(dataclasses.replace(WIDE, optimizer=OPTIMIZERS[name], clip_norm=clip_norm))


def test_every_optimizer_is_tried() -> None:
    exported = {getattr(optim, name) for name in optim.__all__}
    leaves = {kind for kind in exported if isinstance(kind, type) and issubclass(kind, optim.Optimizer)}
    assert {kind.__name__ for kind in leaves if not inspect.isabstract(kind)} == set(OPTIMIZERS)


@pytest.mark.parametrize("clip", [{}, {"clip_norm": 0.3}, {"clip_value": 0.01}], ids=["", "norm", "value"])
@pytest.mark.parametrize("name", ["SGD", "LARS", "LAMB"])
def test_three_ranks_follow_a_script_with_the_three_lines(name: str, clip: dict[str, float]) -> None:
    case = dataclasses.replace(SMALL, optimizer=OPTIMIZERS[name], **clip)
    script = build_rank(run_ranks(1, lambda c: c)[0], case)
    optimizer, model = script.optimizer, script.objective.model
    for step in range(NUM_STEPS):
        epoch, step_in_epoch = case.plan.position(step)
        ids = case.plan.epoch_order(epoch)[step_in_epoch * 8 :][:8]
        x, target = case.dataset.batch(ids)
        nn.functional.cross_entropy(model(ddp.tensor(x)), target).backward()
        if "clip_norm" in clip:
            assert optim.clip_grad_norm_(script.parameters, clip["clip_norm"]) > clip["clip_norm"]
        if "clip_value" in clip:
            optim.clip_grad_value_(script.parameters, clip["clip_value"])
        optimizer.step()
        optimizer.zero_grad()
    for rank, _ in run_ranks(3, lambda c: train(c, case)):
        np.testing.assert_allclose(rank.parameters.data, script.parameters.data, rtol=1e-4, atol=1e-6)


def test_the_norm_that_is_reported_is_that_before_clipping() -> None:
    [(_, free)] = run_ranks(1, lambda c: train(c, SMALL))
    [(_, clipped)] = run_ranks(1, lambda c: train(c, dataclasses.replace(SMALL, clip_norm=1e-3)))
    assert clipped[1].previous_gradient_norm == free[1].previous_gradient_norm
    assert clipped[1].previous_gradient_norm is not None
    assert clipped[1].previous_gradient_norm > 1e-3


def test_the_average_is_evaluated_on_every_rank_and_training_goes_on_with_the_weights() -> None:
    case = dataclasses.replace(WIDE, ema_decay=0.9)
    assert_same_on_any_number_of_ranks(case)

    def run(communicator: Any) -> tuple[np.ndarray, np.ndarray]:
        rank = build_rank(communicator, case)
        trajectory = []
        for step in range(NUM_STEPS):
            rank.step.run(step)
            trajectory.append(rank.parameters.data.astype(np.float64))
        expected = trajectory[0]
        for weights in trajectory[1:]:
            expected = 0.9 * expected + 0.1 * weights
        before = rank.parameters.data.copy()
        with rank.update.evaluated_weights():
            averaged = np.concatenate([parameter.numpy().ravel() for parameter in rank.parameters.parameters])
        np.testing.assert_array_equal(rank.parameters.data, before)
        return averaged, expected

    results = run_ranks(3, run)
    for averaged, expected in results:
        np.testing.assert_allclose(averaged, expected, rtol=1e-5, atol=1e-7)
        assert averaged.tobytes() == results[0][0].tobytes()


def test_before_the_average_has_had_a_step_the_weights_are_evaluated() -> None:
    def run(communicator: Any) -> None:
        rank = build_rank(communicator, dataclasses.replace(WIDE, ema_decay=0.9))
        for skips in (False, True):
            if skips:
                rank.update.skip_step(0)
            before = rank.parameters.data.copy()
            with rank.update.evaluated_weights():
                shown = np.concatenate([parameter.numpy().ravel() for parameter in rank.parameters.parameters])
            np.testing.assert_array_equal(shown, before[: shown.size])
            assert shown.any()

    run_ranks(3, run)


# ---- buffers


class Counting(nn.Module):
    """A layer with a constant buffer, a switch and a count of the samples that it has seen."""

    def __init__(self) -> None:
        self.linear = nn.Linear(6, 3)
        self.table = nn.Buffer(np.random.default_rng(0).standard_normal(7).astype(np.float32))
        self.is_used = nn.Buffer(np.zeros((), bool))
        self.num_samples = nn.Buffer(np.array(2**40, np.int64))

    def forward(self, x: Any) -> Any:
        if self.training:
            with ddp.no_grad():
                self.num_samples.add_(len(x.numpy()))
                self.is_used.fill_(True)
        return self.linear(x)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_whole_numbers_move_by_the_mean_and_constants_keep_their_bits(size: int) -> None:
    case = Case(classes(12, 6), Counting, plan=ShardPlan(12, 6, 3, 0))
    for rank, _ in run_ranks(size, lambda c: train(c, case)):
        state = rank.objective.model.state_dict()
        assert state["num_samples"] == 2**40 + NUM_STEPS * 2
        assert state["is_used"]
        assert state["table"].tobytes() == Counting().state_dict()["table"].tobytes()


def normalized(layer: type[nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(6, 5), layer(5), nn.Tanh(), nn.Linear(5, 3))


# Shards of 2 and of 3 samples, so that each has a variance.
BATCH_NORM = Case(classes(36, 6), normalized(nn.BatchNorm1d), plan=ShardPlan(36, 12, 5, 1))


def test_batch_norm_has_the_same_bits_on_any_number_of_ranks() -> None:
    alone = assert_same_on_any_number_of_ranks(BATCH_NORM)
    assert alone.objective.model.state_dict()["1.num_batches_tracked"] == NUM_STEPS


def test_running_statistics_are_the_means_of_those_that_the_shards_would_have() -> None:
    rank = build_rank(run_ranks(1, lambda c: c)[0], BATCH_NORM)
    before = rank.objective.model.state_dict()
    plan, expected = BATCH_NORM.plan, []
    for shard in range(plan.num_shards):
        x, _ = BATCH_NORM.dataset.batch(plan.shard_ids(0, shard))
        hidden = x @ before["0.weight"].T + before["0.bias"]
        expected.append((0.1 * hidden.mean(0), 0.9 + 0.1 * hidden.var(0, ddof=1)))
    rank.step.run(0)
    after = rank.objective.model.state_dict()
    np.testing.assert_allclose(after["1.running_mean"], np.mean([mean for mean, _ in expected], axis=0), rtol=1e-5)
    np.testing.assert_allclose(after["1.running_var"], np.mean([var for _, var in expected], axis=0), rtol=1e-5)


def test_shards_without_samples_leave_the_statistics_alone() -> None:
    signals = Case(
        classes(11, 6),
        lambda: nn.Sequential(nn.Unflatten(1, (3, 2)), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(6, 3)),
        plan=ShardPlan(11, 8, 4, 1),  # the last batch leaves a shard without a sample
    )
    alone = assert_same_on_any_number_of_ranks(signals)
    assert alone.objective.model.state_dict()["1.num_batches_tracked"] == NUM_STEPS
