"""How large a gradient is: what of it need not be read, and that nothing is missed by that."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ddp_bp as ddp
from ddp_bp import nn
from ddp_bp.engine.flat import FlatParameters
from ddp_bp.engine.gradient_size import GradientSize
from ddp_bp.engine.graph import Leaf
from ddp_bp.engine.ops.product import LINEAR

# 65,536 elements: as few as make a weight large.
WIDE, HIGH = 512, 128


def backward(
    model: nn.Module, x: np.ndarray, scale: float = 1.0, *, takes_limits: bool = True
) -> tuple[np.ndarray, float]:
    """The gradient of a sum over all outputs, and its size."""
    flat = FlatParameters.of(model.named_parameters())
    size = GradientSize(flat, takes_limits=takes_limits)
    vector = np.full(flat.size, np.nan, np.float32)
    flat.bind_gradient(vector)
    size.begin()
    with np.errstate(all="ignore"):
        (model(ddp.tensor(x)) * scale).sum().backward()
    flat.finish_gradient()
    return vector, size.squared()


def limits(model: nn.Module) -> list[float | None]:
    return [leaf.limit if type(leaf := parameter._node) is Leaf else None for parameter in model.parameters()]


@pytest.mark.filterwarnings("ignore:.*encountered in dot:RuntimeWarning")
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 40), st.integers(-12, 12), st.integers(-12, 12))
def test_no_element_exceeds_the_limit(num_rows: int, seed: int, x_power: int, scale_power: int) -> None:
    model = nn.Sequential(nn.Linear(WIDE, HIGH), nn.Tanh(), nn.Linear(HIGH, 3))
    x = np.random.default_rng(seed).standard_normal((num_rows, WIDE)).astype(np.float32) * np.float32(10.0**x_power)
    gradient, size = backward(model, x, 10.0**scale_power)
    [limit, *others] = limits(model)
    assert others == [None] * 3, "the others are small"
    assert limit is not None
    assert np.abs(gradient[: WIDE * HIGH]).max() <= limit * (1 + 1e-5)
    rest = gradient[WIDE * HIGH :]
    if limit < 1e30:
        assert size == pytest.approx(limit**2 + float(rest.dot(rest)), rel=1e-6)


def test_only_what_takes_less_reading_has_a_limit() -> None:
    model = nn.Linear(WIDE, HIGH)
    for num_rows, expected in ((76, True), (77, False)):
        gradient, size = backward(model, np.ones((num_rows, WIDE), np.float32))
        assert (limits(model)[0] is not None) is expected, f"{num_rows} rows of {WIDE} + {HIGH} numbers"
        if not expected:
            assert size == pytest.approx(float(np.dot(gradient.astype(np.float64), gradient)), rel=1e-5)
    backward(model, np.ones((2, WIDE), np.float32), takes_limits=False)
    assert limits(model)[0] is None
    x = np.ones((1, 3, WIDE), np.float32)
    backward(model, x)
    assert limits(model)[0] == pytest.approx(math.sqrt(3 * WIDE) * math.sqrt(3 * HIGH))


@pytest.mark.filterwarnings("ignore:.*encountered in dot:RuntimeWarning")
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("where", ["input", "gradient", "both"])
def test_what_is_not_finite_is_never_taken_for_finite(bad: float, where: str) -> None:
    model, x, scale = nn.Linear(WIDE, HIGH), np.ones((2, WIDE), np.float32), 1.0
    if where != "gradient":
        x[1, 7] = bad
    if where != "input":
        scale = bad
    gradient, size = backward(model, x, scale)
    if not np.isfinite(gradient).all():
        assert not math.isfinite(size)
    if where == "both":
        assert not np.isfinite(gradient).all(), "a product of finite numbers that overflows"


def test_a_weight_that_is_used_twice_or_written_by_others_has_none() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            self.linear = nn.Linear(WIDE, HIGH)

        def forward(self, x: ddp.Tensor) -> ddp.Tensor:
            return self.linear(x) + self.linear(2 * x)

    model = Twice()
    gradient, size = backward(model, np.ones((2, WIDE), np.float32))
    assert limits(model)[0] is None
    assert size == pytest.approx(float(np.dot(gradient.astype(np.float64), gradient)), rel=1e-5)
    once = nn.Linear(WIDE, HIGH)
    flat = FlatParameters(once.named_parameters())
    known = GradientSize(flat)
    flat.bind_gradient(np.empty(flat.size, np.float32))
    known.begin()
    once(ddp.tensor(np.ones((2, WIDE), np.float32))).sum().backward()
    assert limits(once)[0] is not None
    once.weight.grad = np.full((HIGH, WIDE), np.inf, np.float32)
    flat.finish_gradient()
    assert known.squared() == np.inf


def test_a_weight_that_was_frozen_for_a_while_has_a_limit_again() -> None:
    model = nn.Linear(WIDE, HIGH)
    backward(model, np.ones((2, WIDE), np.float32))
    model.weight.requires_grad_(False).requires_grad_(True)
    backward(model, np.ones((2, WIDE), np.float32))
    assert limits(model)[0] is not None


def test_a_transposed_output_is_read_where_it_lies() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 70)).astype(np.float32)
    weight = np.ones((40, 70), np.float32)
    gradient = np.asfortranarray(rng.standard_normal((5, 40)).astype(np.float32))
    assert LINEAR.limit is not None
    limit = LINEAR.limit(gradient, (x, weight, False))
    assert limit == pytest.approx(float(np.linalg.norm(x) * np.linalg.norm(gradient)), rel=1e-5)
    assert np.abs(gradient.T @ x).max() <= limit
