"""Losses: values, totals that add up over unequal parts, and what they refuse."""

from __future__ import annotations

import inspect

import loss_cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ddp_bp as ddp
from ddp_bp import nn
from ddp_bp.errors import DtypeError, GraphError, InputError, ShapeError


def tensors(batch: loss_cases.Batch, rows: slice = slice(None)) -> list[ddp.Tensor]:
    return [ddp.tensor(array[rows]) for array in batch]


every_loss = pytest.mark.parametrize(
    "case", loss_cases.CASES, ids=lambda case: f"{case.name}-{'-'.join(case.arguments)}"
)


def test_every_loss_has_a_case() -> None:
    classes = [value for value in map(vars(nn).get, nn.__all__) if inspect.isclass(value)]
    names = {kind.__name__ for kind in classes if issubclass(kind, nn.Loss)}
    assert names - {"Loss"} == {case.name for case in loss_cases.CASES}


@every_loss
@settings(max_examples=10, deadline=None)
@given(cut=st.integers(0, 9), seed=st.integers(0, 1000))
def test_the_mean_is_the_sum_of_totals_over_the_sum_of_counts(case: loss_cases.LossCase, cut: int, seed: int) -> None:
    loss = getattr(nn, case.name)(**case.arguments)
    batch = case.batch(np.random.default_rng(seed), 9)
    parts = [loss.total(*tensors(batch, rows)) for rows in (slice(0, cut), slice(cut, 9))]
    mean = loss(*tensors(batch)).item()
    assert sum(total.item() for total, _ in parts) / sum(count for _, count in parts) == pytest.approx(mean)
    assert all(total.shape == () and isinstance(count, float) for total, count in parts)


@every_loss
@settings(max_examples=6, deadline=None)
@given(num_samples=st.integers(0, 4), seed=st.integers(0, 1000))
def test_gradients_match_central_differences(case: loss_cases.LossCase, num_samples: int, seed: int) -> None:
    loss = getattr(nn, case.name)(**case.arguments)
    batch = case.batch(np.random.default_rng(seed), num_samples)
    inputs = [ddp.tensor(array, requires_grad=array.dtype == np.float64) for array in batch]
    ddp.gradcheck(lambda *values: loss.total(*values)[0], *inputs)
    if loss.total(*inputs)[1]:
        ddp.gradcheck(loss, *inputs)


def test_a_batch_of_ignored_samples_has_a_total_of_zero_and_no_gradient() -> None:
    logits = ddp.tensor(np.ones((2, 3)), requires_grad=True)
    for kind in (nn.CrossEntropyLoss, nn.NLLLoss):
        total, count = kind().total(logits, np.array([-100, -100]))
        assert (total.item(), count) == (0.0, 0.0)
        mean = kind()(logits, np.array([-100, -100]))
        assert np.isnan(mean.item())
        mean.backward()
        np.testing.assert_array_equal(logits.grad, np.zeros((2, 3)))


def test_an_ignored_sample_may_be_infinitely_wrong() -> None:
    logits = ddp.tensor(np.array([[-np.inf, 0.0], [1.0, 1.0]]))
    target = np.array([-1, 0])
    assert nn.CrossEntropyLoss(ignore_index=-1)(logits, target).item() == pytest.approx(np.log(2))
    assert nn.NLLLoss(ignore_index=-1)(logits, target).item() == -1.0


def test_a_weight_is_part_of_the_state_and_not_of_the_graph() -> None:
    weight = np.array([1.0, 2.0, 3.0])
    loss = nn.CrossEntropyLoss(weight)
    weight[:] = 0
    np.testing.assert_array_equal(loss.state_dict()["weight"], [1, 2, 3])
    assert list(loss.parameters()) == []
    with pytest.raises(GraphError, match="detach"):
        nn.functional.cross_entropy(ddp.tensor(np.eye(3)), np.arange(3), ddp.tensor(np.ones(3), requires_grad=True))


def test_large_logits_do_not_overflow() -> None:
    logits = ddp.tensor([[1000.0, -1000.0], [-1000.0, 1000.0]], requires_grad=True)
    loss = nn.CrossEntropyLoss()(logits, np.array([0, 0]))
    assert loss.item() == 1000.0
    loss.backward()
    np.testing.assert_allclose(logits.grad, [[0, 0], [-0.5, 0.5]])


def test_an_empty_batch_has_a_total_of_zero() -> None:
    logits = ddp.tensor(np.ones((0, 3)), requires_grad=True)
    total, count = nn.CrossEntropyLoss().total(logits, np.zeros(0, np.int64))
    assert (total.item(), count) == (0.0, 0.0)
    total.backward()
    assert logits.grad is not None and logits.grad.shape == (0, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_class_numbers_of_any_integer_dtype(dtype: type) -> None:
    logits = ddp.tensor(np.eye(3))
    expected = nn.CrossEntropyLoss()(logits, np.array([0, 1, 2])).item()
    assert nn.CrossEntropyLoss()(logits, np.array([0, 1, 2], dtype)).item() == expected


def test_what_a_loss_cannot_take_is_named() -> None:
    logits = ddp.tensor(np.ones((2, 3)))
    with pytest.raises(ShapeError, match=r"class numbers from -1 to 3 .* in \[0, 3\)"):
        nn.CrossEntropyLoss()(logits, np.array([3, -1]))
    with pytest.raises(ShapeError, match=r"logits \(N, C\) with a target"):
        nn.CrossEntropyLoss()(logits, np.array([[0], [1]]))
    with pytest.raises(DtypeError, match="integer class numbers"):
        nn.CrossEntropyLoss()(logits, np.array([0.0, 1.0]))
    with pytest.raises(ShapeError, match="broadcasting here"):
        nn.MSELoss()(ddp.tensor(np.ones((2, 1))), np.ones(2))
    with pytest.raises(InputError, match="'average'"):
        nn.MSELoss("average")
    with pytest.raises(InputError, match="'average'"):
        nn.functional.cross_entropy(logits, ddp.tensor([0, 1]), reduction="average")
    with pytest.raises(ShapeError, match=r"one weight for each class, \(3,\)"):
        nn.CrossEntropyLoss(np.ones(2))(logits, np.array([0, 1]))
    with pytest.raises(InputError, match="label_smoothing"):
        nn.CrossEntropyLoss(label_smoothing=1.5)
    with pytest.raises(InputError, match="label_smoothing"):
        nn.functional.cross_entropy(logits, ddp.tensor([0, 1]), label_smoothing=-0.1)
    with pytest.raises(InputError, match="beta"):
        nn.SmoothL1Loss(beta=-1)
    with pytest.raises(InputError, match="delta"):
        nn.functional.huber_loss(logits, logits, delta=0)
    with pytest.raises(InputError, match="'batchmean'"):
        nn.MSELoss("batchmean")
    with pytest.raises(NotImplementedError, match="total"):
        nn.Loss().total(logits, logits)
