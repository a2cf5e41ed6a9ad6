"""Shards side by side: batch norm over all of them, against one process with the whole batch; and their failures."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_worker_update import assert_same_on_any_number_of_ranks, train
from worker_cases import Case, assert_same, build_rank, classes, outcome

import ddp_bp as ddp
from ddp_bp import nn, optim
from ddp_bp.data import ShardPlan
from ddp_bp.errors import DistributedError, InputError, RemoteError
from ddp_bp.parallel.threads import run_ranks
from ddp_bp.worker.failures import RankFailure

NUM_STEPS = 7


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 5), nn.SyncBatchNorm(5), nn.Tanh(), nn.Dropout(0.0), nn.SyncBatchNorm(5), nn.Linear(5, 3)
    )


# Batches of 10 in shards of 2 and 3; then 4 samples, one a shard, and no shard has a variance of its own.
SYNCED = Case(classes(34, 6), network, lambda p: optim.SGD(p, lr=0.5, momentum=0.9))


def test_any_number_of_ranks_gives_the_same_bits() -> None:
    assert_same_on_any_number_of_ranks(SYNCED)
    both = dataclasses.replace(
        SYNCED,
        build=lambda: nn.Sequential(
            *(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Dropout(0.3), nn.SyncBatchNorm(9), nn.Linear(9, 3))
        ),
        plan=ShardPlan(34, 17, 5, 0),
    )
    assert_same_on_any_number_of_ranks(both)


@settings(max_examples=20, deadline=None)
@given(
    num_samples=st.integers(2, 20),
    batch_size=st.integers(2, 24),
    num_shards=st.integers(1, 6),
    size=st.integers(1, 4),
)
def test_it_is_batch_norm_over_the_whole_batch(num_samples: int, batch_size: int, num_shards: int, size: int) -> None:
    if num_samples % batch_size == 1:
        batch_size += 1  # one value has no variance
        if num_samples % batch_size == 1:
            return
    case = Case(classes(num_samples, 6), network, plan=ShardPlan(num_samples, batch_size, num_shards, 3))
    whole = dataclasses.replace(case, plan=ShardPlan(num_samples, batch_size, 1, 3))
    [(expected, losses)] = run_ranks(1, lambda c: train(c, whole))
    for rank, results in run_ranks(size, lambda c: train(c, case)):
        np.testing.assert_allclose([r.loss for r in results], [r.loss for r in losses], rtol=2e-4)
        for name, value in rank.objective.model.state_dict().items():
            np.testing.assert_allclose(
                value, expected.objective.model.state_dict()[name], rtol=1e-3, atol=2e-5, err_msg=name
            )


@pytest.mark.parity
def test_three_ranks_follow_pytorchs_batch_norm_on_the_whole_batch() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Sequential(
        torch.nn.Linear(6, 5),
        torch.nn.BatchNorm1d(5),
        torch.nn.Tanh(),
        torch.nn.Identity(),
        torch.nn.BatchNorm1d(5),
        torch.nn.Linear(5, 3),
    )
    initial = build_rank(run_ranks(1, lambda c: c)[0], SYNCED).objective.model.state_dict()
    theirs.load_state_dict({key: torch.from_numpy(array) for key, array in initial.items()}, strict=True)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.5, momentum=0.9)
    losses = []
    for step in range(NUM_STEPS):
        epoch, step_in_epoch = SYNCED.plan.position(step)
        x, target = SYNCED.dataset.batch(SYNCED.plan.epoch_order(epoch)[step_in_epoch * 10 :][:10])
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(theirs(torch.from_numpy(x)), torch.from_numpy(target))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for rank, results in run_ranks(3, lambda c: train(c, SYNCED)):
        np.testing.assert_allclose([result.loss / result.weight for result in results], losses, rtol=1e-4)
        for key, array in rank.objective.model.state_dict().items():
            np.testing.assert_allclose(array, theirs.state_dict()[key].numpy(), rtol=1e-3, atol=1e-5)


class Doubtful(nn.Module):
    """Raises, or leaves out its sum over all shards, where `is_doubtful` says so of a batch."""

    sums_over_shards = True

    def __init__(self, is_doubtful: Any, error: Exception | None) -> None:
        self.linear = nn.Linear(6, 3)
        self.is_doubtful, self.error = is_doubtful, error

    def forward(self, x: Any) -> Any:
        y = self.linear(x)
        y = y - nn.functional.shard_sum(y.sum(0))
        if self.is_doubtful(x.numpy()):
            if self.error is not None:
                raise self.error
            return y
        return y - nn.functional.shard_sum(y.sum(0))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("shard", [0, 3])
def test_a_shard_that_raises_ends_the_step_on_all_ranks_and_leaves_no_thread(size: int, shard: int) -> None:
    samples, _ = SYNCED.dataset.batch(SYNCED.plan.shard_ids(1, shard))
    error = ValueError("the bits have rusted")
    build = lambda: Doubtful(lambda x: x.shape == samples.shape and bool((x == samples).all()), error)  # noqa: E731
    case = dataclasses.replace(SYNCED, build=build)

    def run(communicator: Any) -> Any:
        rank = build_rank(communicator, case)
        rank.step.run(0)
        before = rank.state()
        raised = outcome(lambda: rank.step.run(1))
        assert_same(rank.state(), before)
        return raised

    outcomes = run_ranks(size, run)
    culprit = shard * size // 4
    for number, raised in enumerate(outcomes):
        assert isinstance(raised, RankFailure if number == culprit else RemoteError)
    assert outcomes[culprit].error is error
    assert not [thread for thread in threading.enumerate() if "_body" in repr(thread) or "LockStep" in repr(thread)]
    assert threading.active_count() < 10


@pytest.mark.parametrize("size", [1, 2, 4])
def test_shards_that_do_not_keep_step_are_an_error_and_no_hang(size: int) -> None:
    case = dataclasses.replace(SYNCED, build=lambda: Doubtful(lambda x: len(x) == 2, None))
    raised = run_ranks(size, lambda c: outcome(lambda: build_rank(c, case).step.run(0)))
    own = [error for error in raised if isinstance(error, RankFailure)]
    assert [type(error.error) for error in own] == [DistributedError]
    assert "not all shards ask for the same sums" in str(own[0])
    assert all(isinstance(error, RemoteError) for error in raised if error not in own)


class Silent(Doubtful):
    sums_over_shards = False


def test_a_module_that_sums_over_shards_must_say_so() -> None:
    case = dataclasses.replace(SYNCED, build=lambda: Silent(lambda x: False, None))
    [raised] = run_ranks(1, lambda c: outcome(lambda: build_rank(c, case).step.run(0)))
    assert isinstance(raised.error, InputError)
    assert "set `sums_over_shards = True` in its class" in str(raised)


def test_any_batch_norm_can_be_turned_into_one_over_all_shards() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ModuleList([nn.BatchNorm1d(5)]), nn.BatchNorm2d(3))
    names = list(model.state_dict())
    assert nn.SyncBatchNorm.convert_sync_batchnorm(model) is model
    assert [type(module).__name__ for module in model.modules()].count("SyncBatchNorm") == 2
    assert list(model.state_dict()) == names
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm1d(3)), nn.SyncBatchNorm)


def test_a_single_value_over_all_shards_has_no_variance() -> None:
    case = dataclasses.replace(SYNCED, plan=ShardPlan(34, 1, 2, 0))
    for raised in run_ranks(1, lambda c: outcome(lambda: build_rank(c, case).step.run(0))):
        assert "1 value(s) per channel over all shards" in str(raised)


def test_alone_in_a_script_it_is_batch_norm_to_the_bit() -> None:
    x = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    synced, plain = nn.SyncBatchNorm(5), nn.BatchNorm1d(5)
    assert (synced(ddp.tensor(x)).numpy() == plain(ddp.tensor(x)).numpy()).all()
