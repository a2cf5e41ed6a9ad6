"""Evaluation with ranks as threads: every sample once, and the same bits whoever looked at it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worker_cases import Broken, classes, network, outcome, values

from ddp_bp import nn
from ddp_bp.data import Dataset
from ddp_bp.engine import no_grad
from ddp_bp.engine.buffers import Buffers
from ddp_bp.engine.random import random_stream
from ddp_bp.errors import RemoteError
from ddp_bp.parallel.threads import run_ranks
from ddp_bp.worker.evaluation import Evaluation, EvaluationResult
from ddp_bp.worker.failures import RankFailure
from ddp_bp.worker.objective import Objective


class Counting(Dataset):
    """Notes every sample that it is asked for."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(*dataset.batch(np.arange(dataset.num_samples)))
        self.asked: list[int] = []

    def batch(self, ids):
        self.asked += ids.tolist()
        return super().batch(ids)


def objective(is_classification: bool, model: nn.Module | None = None) -> Objective:
    with random_stream(0, 0, 0):
        model = model or network(6, 5, 3 if is_classification else 2, dropout=0.5)
    loss = nn.CrossEntropyLoss() if is_classification else nn.MSELoss()
    return Objective(model, loss, counts_correct=is_classification)


def evaluate(dataset: Dataset, size: int, chunk_size: int, is_classification: bool = True) -> list[EvaluationResult]:
    def run(communicator):
        evaluation = Evaluation(
            objective(is_classification), dataset, chunk_size, communicator, 1, lambda error, step: None
        )
        return evaluation.run(8, has_accuracy=is_classification)

    return run_ranks(size, run)


@settings(max_examples=40, deadline=None)
@given(
    num_samples=st.integers(1, 40),
    chunk_size=st.integers(1, 50),
    size=st.integers(1, 6),
    is_classification=st.booleans(),
)
def test_each_sample_is_counted_once_and_the_bits_do_not_depend_on_the_ranks(
    num_samples: int, chunk_size: int, size: int, is_classification: bool
) -> None:
    data = Counting(classes(num_samples, 6) if is_classification else values(num_samples, 6))
    results = evaluate(data, size, chunk_size, is_classification)
    assert sorted(data.asked) == list(range(num_samples))
    [alone] = evaluate(data, 1, chunk_size, is_classification)
    for result in results:
        assert (result.loss, result.accuracy) == (alone.loss, alone.accuracy)
        assert result.num_samples == num_samples


@pytest.mark.parametrize("size", [1, 3])
def test_loss_and_accuracy_are_those_of_all_samples_at_once(size: int) -> None:
    data = classes(50, 6)
    x, target = data.batch(np.arange(50))
    model = objective(True).model
    w1, b1, w2, b2 = (parameter.numpy().astype(np.float64) for parameter in model.parameters())
    output = np.tanh(x @ w1.T + b1) @ w2.T + b2
    log_probabilities = output - np.log(np.exp(output).sum(axis=1, keepdims=True))
    result = evaluate(data, size, 7)[0]
    assert result.loss == pytest.approx(-log_probabilities[np.arange(50), target].mean(), rel=1e-5)
    assert result.accuracy == (output.argmax(axis=1) == target).mean()
    assert result.seconds > 0


def test_regression_has_the_mean_over_elements_and_no_accuracy() -> None:
    data = values(20, 6)
    x, target = data.batch(np.arange(20))
    w1, b1, w2, b2 = (parameter.numpy().astype(np.float64) for parameter in objective(False).model.parameters())
    expected = ((np.tanh(x @ w1.T + b1) @ w2.T + b2 - target) ** 2).mean()
    result = evaluate(data, 2, 6, is_classification=False)[1]
    assert result.loss == pytest.approx(expected, rel=1e-5)
    assert result.accuracy is None


def test_dropout_rests_during_an_evaluation_and_no_gradient_is_recorded() -> None:
    [communicator] = run_ranks(1, lambda c: c)
    subject = objective(True)
    evaluation = Evaluation(subject, classes(20, 6), 8, communicator, 1, lambda error, step: None)
    first = evaluation.run(0, has_accuracy=True)
    assert not subject.model.training
    assert evaluation.run(1, has_accuracy=True).loss == first.loss
    assert all(parameter.grad is None for parameter in subject.model.parameters())


def test_a_rank_that_raises_stops_the_others() -> None:
    error = ArithmeticError("no")
    shown = []

    def run(communicator):
        model = Broken(network(6, 5, 3), error) if communicator.rank == 1 else None
        evaluation = Evaluation(
            objective(True, model), classes(20, 6), 4, communicator, 1, lambda error, step: shown.append((error, step))
        )
        return outcome(lambda: evaluation.run(8, has_accuracy=True))

    raised = run_ranks(3, run)
    assert [type(each) for each in raised] == [RemoteError, RankFailure, RemoteError]
    assert raised[1].error is error
    assert "during the evaluation after step 8, because rank 1 failed" in str(raised[0])
    assert shown == [(error, 8)]


class Restless(nn.Module):
    """Draws random numbers and counts, in evaluation as well."""

    def __init__(self) -> None:
        self.linear = nn.Linear(6, 3)
        self.count = nn.Buffer(np.zeros((), np.float32))

    def forward(self, x):
        with no_grad():
            self.count.add_(1)
        return nn.functional.dropout(self.linear(x) * (1 + self.count), 0.5, training=True)


def test_what_a_model_draws_or_changes_in_evaluation_depends_on_the_chunk_alone() -> None:
    data = classes(50, 6)

    def run(communicator):
        subject = objective(True, Restless())
        buffers = Buffers(subject.model.named_buffers())
        evaluation = Evaluation(subject, data, 7, communicator, 1, lambda error, step: None, buffers=buffers, seed=3)
        results = [evaluation.run(step, has_accuracy=True) for step in (8, 8, 9)]
        assert subject.model.count.item() == 0
        return [result.loss for result in results]

    [alone] = run_ranks(1, run)
    assert alone[0] == alone[1] != alone[2]
    for size in (2, 3, 7):
        assert run_ranks(size, run) == [alone] * size
