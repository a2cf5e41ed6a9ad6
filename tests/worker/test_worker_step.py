"""The step with ranks as threads: against NumPy by hand, against itself on other numbers of ranks, and its failures."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worker_cases import Broken, Case, Rank, assert_same, build_rank, classes, network, outcome, values

import ddp_bp as ddp
from ddp_bp import nn, optim
from ddp_bp.data import Dataset, ShardPlan, digest_ids
from ddp_bp.engine.graph import Leaf
from ddp_bp.errors import DataError, DisagreementError, GraphError, RemoteError
from ddp_bp.parallel.threads import ThreadCommunicator, run_ranks
from ddp_bp.worker.failures import RankFailure
from ddp_bp.worker.step import StepResult

WORLD_SIZES = (1, 2, 3, 5)
NUM_STEPS = 9  # two epochs of four steps, and one more

SGD = Case(classes(34, 6))
MOMENTUM = Case(values(34, 6), lambda: network(6, 5, 2), lambda p: optim.SGD(p, lr=0.1, momentum=0.9), SGD.plan, False)
ADAM = Case(classes(34, 6), optimizer=lambda p: optim.Adam(p, lr=0.05, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.01))


def train(communicator: ThreadCommunicator, case: Case, num_steps: int = NUM_STEPS) -> tuple[Rank, list[StepResult]]:
    rank = build_rank(communicator, case)
    return rank, [rank.step.run(step) for step in range(num_steps)]


def global_ids(plan: ShardPlan, step: int) -> np.ndarray:
    """The samples of a whole batch, by the plan's order and not by its shards."""
    epoch, step_in_epoch = plan.position(step)
    return plan.epoch_order(epoch)[step_in_epoch * plan.batch_size :][: plan.batch_size]


# ---- by hand, in float64, over the whole batch at once


def by_hand(weights: list[np.ndarray], x: np.ndarray, target: np.ndarray) -> tuple[float, list[np.ndarray]]:
    """Sum of the losses over a batch, and the gradient of their mean, of Linear, Tanh, Linear."""
    w1, b1, w2, b2 = weights
    h = np.tanh(x @ w1.T + b1)
    output = h @ w2.T + b2
    if target.ndim == 1:  # cross-entropy: softmax minus one-hot
        shifted = output - output.max(axis=1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        rows = np.arange(len(x))
        loss = -log_probabilities[rows, target].sum()
        d = np.exp(log_probabilities)
        d[rows, target] -= 1
        d /= len(x)
    else:  # mean squared error over all elements
        loss = ((output - target) ** 2).sum()
        d = 2 * (output - target) / target.size
    dh = d @ w2 * (1 - h**2)
    return float(loss), [dh.T @ x, dh.sum(axis=0), d.T @ h, d.sum(axis=0)]


def sgd_by_hand(weights, gradients, state, step):
    for weight, gradient in zip(weights, gradients, strict=True):
        weight -= 0.1 * gradient


def momentum_by_hand(weights, gradients, state, step):
    for index, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
        state[index] = 0.9 * state.get(index, 0.0) + gradient
        weight -= 0.1 * state[index]


def adam_by_hand(weights, gradients, state, step):
    for index, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
        g = gradient + 0.01 * weight
        m, v = state.get(index, (0.0, 0.0))
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        state[index] = (m, v)
        weight -= 0.05 * (m / (1 - 0.8 ** (step + 1))) / (np.sqrt(v / (1 - 0.95 ** (step + 1))) + 1e-6)


@pytest.mark.parametrize("size", WORLD_SIZES)
@pytest.mark.parametrize(
    ("case", "update"),
    [(SGD, sgd_by_hand), (MOMENTUM, momentum_by_hand), (ADAM, adam_by_hand)],
    ids=["sgd, classes", "momentum, values", "adam, classes"],
)
def test_every_step_is_the_mean_over_the_global_batch_worked_out_by_hand(case: Case, update, size: int) -> None:
    initial = build_rank(run_ranks(1, lambda c: c)[0], case)
    weights = [array.astype(np.float64) for array in initial.parameters.arrays().values()]
    losses, norms, state = [], [], {}
    for step in range(NUM_STEPS):
        x, target = case.dataset.batch(global_ids(case.plan, step))
        loss, gradients = by_hand(weights, x.astype(np.float64), target)
        losses.append(loss)
        norms.append(np.sqrt(sum((gradient**2).sum() for gradient in gradients)))
        update(weights, gradients, state, step)
    for rank, results in run_ranks(size, lambda c: train(c, case)):
        assert rank.optimizer.num_steps == NUM_STEPS
        for array, expected in zip(rank.parameters.arrays().values(), weights, strict=True):
            np.testing.assert_allclose(array, expected, rtol=1e-4, atol=2e-6)
        np.testing.assert_allclose([result.loss for result in results], losses, rtol=1e-5)
        assert results[0].previous_gradient_norm is None
        np.testing.assert_allclose([r.previous_gradient_norm for r in results[1:]], norms[:-1], rtol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": 0.1}),
        ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
        ("Adam", {"lr": 0.01}),
        ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    ],
)
def test_three_ranks_train_as_pytorch_does_on_the_whole_batch(name: str, options: dict) -> None:
    torch = pytest.importorskip("torch")
    case = dataclasses.replace(SGD, optimizer=lambda p: getattr(optim, name)(p, **options))
    theirs = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    initial = build_rank(run_ranks(1, lambda c: c)[0], case).parameters.arrays()
    theirs.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in initial.items()})
    optimizer = getattr(torch.optim, name)(theirs.parameters(), **options)
    losses = []
    for step in range(NUM_STEPS):
        x, target = case.dataset.batch(global_ids(case.plan, step))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(theirs(torch.from_numpy(x)), torch.from_numpy(target))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    rank, results = run_ranks(3, lambda c: train(c, case))[0]
    np.testing.assert_allclose([result.loss / result.weight for result in results], losses, rtol=1e-5)
    for key, array in rank.parameters.arrays().items():
        np.testing.assert_allclose(array, theirs.state_dict()[key].numpy(), rtol=1e-4, atol=1e-6)


# ---- the same bits


WIDE = Case(  # 8,095 parameters: several slices of 1,024; dropout; batches of 3 leave shards without a sample
    classes(35, 64),
    lambda: network(64, 119, 3, dropout=0.3),
    lambda p: optim.AdamW(p, lr=0.01),
    ShardPlan(35, 8, 4, 3),
)


@pytest.mark.parametrize("case", [WIDE, MOMENTUM], ids=["wide, dropout", "small"])
def test_any_number_of_ranks_gives_the_same_bits(case: Case) -> None:
    [(alone, expected)] = run_ranks(1, lambda c: train(c, case))
    for size in (2, 3, 4, 5):
        ranks = run_ranks(size, lambda c: train(c, case))
        for rank, results in ranks:
            assert rank.parameters.data.tobytes() == alone.parameters.data.tobytes()
            for result, other in zip(results, expected, strict=True):
                assert (result.loss, result.weight, result.correct) == (other.loss, other.weight, other.correct)
                assert result.shard_digests == other.shard_digests
            lo, hi = rank.bounds
            for name, state in rank.optimizer.state.items():
                assert state[lo:hi].tobytes() == alone.optimizer.state[name][lo:hi].tobytes()


@settings(max_examples=25, deadline=None)
@given(
    num_samples=st.integers(1, 30),
    batch_size=st.integers(1, 40),
    num_shards=st.integers(1, 9),
    size=st.integers(2, 6),
    seed=st.integers(0, 5),
)
def test_no_way_to_cut_data_and_ranks_changes_a_bit(
    num_samples: int, batch_size: int, num_shards: int, size: int, seed: int
) -> None:
    plan = ShardPlan(num_samples, batch_size, num_shards, seed)
    case = Case(classes(num_samples, 6), lambda: network(6, 5, 3, dropout=0.2), plan=plan)
    [(alone, expected)] = run_ranks(1, lambda c: train(c, case, 3))
    for rank, results in run_ranks(size, lambda c: train(c, case, 3)):
        assert rank.parameters.data.tobytes() == alone.parameters.data.tobytes()
        assert [result.loss for result in results] == [result.loss for result in expected]


def test_a_step_tells_what_each_shard_was_fed_and_what_ranks_asked_for() -> None:
    def run(communicator):
        rank = build_rank(communicator, SGD)
        return rank.step.run(3, requests=1 << communicator.rank), rank.step.num_own_samples

    outcomes = run_ranks(3, run)
    digests = [digest_ids(SGD.plan.shard_ids(3, shard)) for shard in range(4)]
    for result, _ in outcomes:
        assert list(result.shard_digests) == digests
        assert result.requests == 0b111
        assert result.weight == 4, "the last batch of the epoch has four samples"
    assert [own for _, own in outcomes] == [1, 1, 2]


# ---- failing together


@pytest.mark.parametrize(("size", "culprit"), [(1, 0), (2, 0), (3, 1), (4, 3)])
def test_a_rank_that_raises_fails_there_and_stops_the_others(size: int, culprit: int) -> None:
    error = DataError("the disk is on fire")

    def run(communicator):
        wrap = (lambda model: Broken(model, error)) if communicator.rank == culprit else (lambda model: model)
        rank = build_rank(communicator, SGD, wrap=wrap)
        before = rank.state()
        raised = outcome(lambda: rank.step.run(2))
        assert_same(rank.state(), before)
        return raised, rank.failures

    for number, (raised, shown) in enumerate(run_ranks(size, run)):
        if number == culprit:
            assert isinstance(raised, RankFailure)
            assert (raised.error, raised.shown, raised.exit_code) == (error, True, 2)
            assert shown == [(error, 2)]
        else:
            assert isinstance(raised, RemoteError)
            assert f"at step 2, because rank {culprit} failed" in str(raised)
            assert shown == []


def poisoned(sample: int) -> Dataset:
    inputs, targets = SGD.dataset.batch(np.arange(34))
    inputs[sample, 4] = np.nan
    return Dataset(inputs, targets)


@pytest.mark.parametrize("size", WORLD_SIZES)
def test_a_loss_that_is_not_finite_is_skipped_by_all_ranks_alike_and_nothing_changes(size: int) -> None:
    sample = int(SGD.plan.shard_ids(1, 2)[0])
    case = dataclasses.replace(ADAM, dataset=poisoned(sample))

    def run(communicator):
        rank = build_rank(communicator, case)
        assert rank.step.run(0).nonfinite_shards == ()
        before = rank.state()
        skipped = rank.step.run(1)
        assert_same(rank.state(), before)
        assert rank.failures == []
        after = rank.step.run(2)
        assert after.previous_gradient_norm is None
        return skipped.nonfinite_shards, skipped.shard_results, rank.parameters.data.tobytes()

    outcomes = run_ranks(size, run)
    assert outcomes[0][0] == (2,)
    assert outcomes == run_ranks(1, run) * size


class Cusp(nn.Module):
    """Its output is 0 and the derivative there infinite."""

    def __init__(self) -> None:
        self.weight = nn.Parameter(np.zeros((6, 2), np.float32))

    def forward(self, x):
        return (x @ self.weight).abs().sqrt()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is() -> None:
    case = dataclasses.replace(MOMENTUM, build=Cusp)

    def run(communicator):
        rank = build_rank(communicator, case)
        result = rank.step.run(0)
        return result.nonfinite_shards, np.isfinite(result.loss), rank.parameters.data.any()

    assert run_ranks(2, run) == [((0, 1, 2, 3), True, False)] * 2


class Flat(nn.Module):
    """Its output is 0, and the gradient of its weight the sum of the inputs."""

    def __init__(self) -> None:
        self.weight = nn.Parameter(np.zeros((6, 1), np.float32))

    def forward(self, x):
        return x @ self.weight


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("size", WORLD_SIZES)
@pytest.mark.parametrize(("target", "bad"), [(-4, ()), (-10, (0, 2))])
def test_gradients_that_are_finite_and_whose_sum_is_not_are_skipped(size: int, target: float, bad: tuple[int]) -> None:
    inputs, targets = np.zeros((34, 6), np.float32), np.zeros((34, 1), np.float32)
    for shard in (0, 2):
        sample = SGD.plan.shard_ids(1, shard)[0]
        # Twice the product of both: 0.8e38 or 2e38.
        inputs[sample, 3], targets[sample] = 1e37, target
    case = Case(Dataset(inputs, targets), Flat, functools.partial(optim.SGD, lr=0.0), is_classification=False)

    def run(communicator):
        rank = build_rank(communicator, case)
        return rank.step.run(1).nonfinite_shards, np.isfinite(rank.parameters.data).all()

    assert run_ranks(size, run) == [(bad, True)] * size


class Steep(nn.Module):
    """Its output is 0, but for samples of 0, and the gradient of its weight 1e20 times the sample."""

    def __init__(self) -> None:
        self.linear = nn.Linear(512, 128, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x):
        return self.linear(x)[:, :3] * 1e20


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bad", [1e20, np.inf, np.nan])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_large_gradient_that_is_not_read_is_found_to_overflow(size: int, bad: float) -> None:
    inputs, targets = np.full((34, 512), 1e-5, np.float32), np.ones((34, 3), np.float32)
    sample = int(SGD.plan.shard_ids(1, 2)[0])
    inputs[sample] = bad
    optimizer = functools.partial(optim.SGD, lr=0.0)
    case = Case(Dataset(inputs, targets), Steep, optimizer, is_classification=False)

    def run(communicator):
        rank = build_rank(communicator, case)
        results = [rank.step.run(step) for step in range(3)]
        assert not rank.parameters.data.any()
        limits = [leaf.limit for parameter in rank.parameters.parameters if type(leaf := parameter._node) is Leaf]
        assert all(limit is not None and limit > 0 for limit in limits), "what is tried here"
        return [(result.nonfinite_shards, result.loss, result.shard_results) for result in results]

    outcomes = run_ranks(size, run)
    assert [nonfinite for nonfinite, _, _ in outcomes[0]] == [(), (2,), ()]
    assert np.isfinite(outcomes[0][1][1]) == (bad == 1e20)
    np.testing.assert_equal(outcomes, run_ranks(1, run) * size)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_gradient_whose_square_overflows_is_still_a_gradient() -> None:
    data = Dataset(np.ones((1, 1), np.float32), np.full((1, 1), 1e19, np.float32))
    plan = ShardPlan(1, 1, 1, 0)
    case = Case(data, lambda: nn.Linear(1, 1), lambda p: optim.SGD(p, lr=1e-19), plan, is_classification=False)
    [(rank, results)] = run_ranks(1, lambda c: train(c, case, 2))
    assert np.isfinite(rank.parameters.data).all()
    assert results[1].previous_gradient_norm == np.inf


def test_ranks_of_other_models_or_at_other_steps_are_told_so_on_every_rank() -> None:
    def layouts(communicator):
        rank = build_rank(communicator, SGD, layout=0xBEEF if communicator.rank == 1 else 0xCAFE)
        before = rank.state()
        raised = outcome(lambda: rank.step.run(0))
        assert_same(rank.state(), before)
        return raised

    def steps(communicator):
        return outcome(lambda: build_rank(communicator, SGD).step.run(5 if communicator.rank == 2 else 4))

    for raised in run_ranks(3, layouts):
        assert isinstance(raised, DisagreementError)
        assert "rank 0: 0xcafe, rank 1: 0xbeef, rank 2: 0xcafe" in str(raised)
    for raised in run_ranks(3, steps):
        assert isinstance(raised, DisagreementError)
        assert "step: expected one value on all, got rank 0: 0x4, rank 1: 0x4, rank 2: 0x5" in str(raised)


def test_graphs_of_before_a_step_cannot_be_used_after_it() -> None:
    rank = build_rank(run_ranks(1, lambda c: c)[0], SGD)
    loss = nn.functional.cross_entropy(rank.objective.model(ddp.tensor(np.ones((1, 6), np.float32))), np.array([0]))
    rank.step.run(0)
    with pytest.raises(GraphError, match="changed"):
        loss.backward()
