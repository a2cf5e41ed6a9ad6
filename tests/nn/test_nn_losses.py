"""Losses: values, totals that add up over unequal parts, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ddp_bp as ddp
from ddp_bp import nn
from ddp_bp.errors import DtypeError, InputError, ShapeError


def batch(loss: nn.Loss, num_samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    output = rng.standard_normal((num_samples, 3))
    if isinstance(loss, nn.CrossEntropyLoss):
        return output, rng.integers(0, 3, num_samples)
    return output, rng.standard_normal((num_samples, 3))


@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.MSELoss])
@settings(max_examples=20, deadline=None)
@given(cut=st.integers(0, 9), seed=st.integers(0, 1000))
def test_the_mean_is_the_sum_of_totals_over_the_sum_of_counts(kind: type[nn.Loss], cut: int, seed: int) -> None:
    output, target = batch(kind(), 9, seed)
    parts = [kind().total(ddp.tensor(output[rows]), target[rows]) for rows in (slice(0, cut), slice(cut, 9))]
    mean = kind()(ddp.tensor(output), ddp.tensor(target)).item()
    assert sum(total.item() for total, _ in parts) / sum(count for _, count in parts) == pytest.approx(mean)
    assert all(total.shape == () and isinstance(count, float) for total, count in parts)
    assert kind("none")(ddp.tensor(output), target).numpy().mean() == pytest.approx(mean)


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
    with pytest.raises(ShapeError, match=r"logits \(N, C\)"):
        nn.CrossEntropyLoss()(logits, np.array([[0], [1]]))
    with pytest.raises(DtypeError, match="integer class numbers"):
        nn.CrossEntropyLoss()(logits, np.array([0.0, 1.0]))
    with pytest.raises(ShapeError, match="broadcasting here"):
        nn.MSELoss()(ddp.tensor(np.ones((2, 1))), np.ones(2))
    with pytest.raises(InputError, match="'average'"):
        nn.MSELoss("average")
    with pytest.raises(InputError, match="'average'"):
        nn.functional.cross_entropy(logits, ddp.tensor([0, 1]), reduction="average")
    with pytest.raises(NotImplementedError, match="total"):
        nn.Loss().total(logits, logits)
