"""Rows without spread, axes without elements, targets without chance: what PyTorch gives for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ddp_bp as ddp
from ddp_bp.nn import functional as F

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
TF = torch.nn.functional

precisions = pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
NORMS: dict[str, Callable[[Any, Any], Any]] = {
    "layer": lambda functions, x: functions.layer_norm(x, x.shape[1:]),
    "group": lambda functions, x: functions.group_norm(x, x.shape[1] // 7),
    "rms": lambda functions, x: functions.rms_norm(x, x.shape[1:]),
}


@precisions
@pytest.mark.parametrize("width", [7, 49, 770])
@pytest.mark.parametrize("value", [1000.0, 1e5, -1e5, 1000.1, 12345.678])
@pytest.mark.parametrize("name", NORMS)
def test_norms_of_constant_rows(name: str, value: float, width: int, dtype: Any, tolerance: float) -> None:
    a = np.full((40, width), value, dtype)
    a[7] = np.linspace(-1, 1, width)
    x, t = ddp.tensor(a, requires_grad=True), torch.tensor(a.astype(np.float64), requires_grad=True)
    y, u = NORMS[name](F, x), NORMS[name](TF, t)
    gradient = np.random.default_rng(0).standard_normal(a.shape).astype(dtype)
    np.testing.assert_allclose(y.numpy(), u.detach().numpy(), rtol=tolerance, atol=tolerance)
    y.backward(gradient)
    u.backward(torch.tensor(gradient.astype(np.float64)))
    # A deviation of 0 makes eps alone the divisor, and gradients hundreds of times as large as what comes in.
    largest = float(t.grad.abs().max())
    np.testing.assert_allclose(x.grad, t.grad.numpy(), rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("offset", [1e2, 1e3, 1e4])
@pytest.mark.parametrize("name", ["layer", "group"])
def test_norms_far_from_0_are_as_good_as_pytorchs(name: str, offset: float) -> None:
    a = (np.random.default_rng(1).standard_normal((300, 98)) + offset).astype(np.float32)
    exact = NORMS[name](TF, torch.tensor(a.astype(np.float64))).numpy()
    error = np.abs(NORMS[name](F, ddp.tensor(a)).numpy() - exact).max()
    assert error <= 1.5 * np.abs(NORMS[name](TF, torch.tensor(a)).numpy() - exact).max()


@pytest.mark.parametrize(("shape", "axis"), [((3, 0), 1), ((3, 0), -1), ((3, 0), 0), ((0, 3), 0), ((2, 0, 3), 1)])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_over_nothing_is_nothing(name: str, shape: tuple[int, ...], axis: int) -> None:
    x = ddp.tensor(np.zeros(shape), requires_grad=True)
    y = getattr(F, name)(x, axis)
    assert y.shape == getattr(TF, name)(torch.zeros(shape), axis).shape
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == shape


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_kl_div_of_what_is_impossible() -> None:
    outputs, target = np.array([-np.inf, -3.0, -np.inf]), np.array([0.0, 0.0, 0.5])
    ours = F.kl_div(ddp.tensor(outputs), ddp.tensor(target), reduction="none").numpy()
    np.testing.assert_array_equal(ours, TF.kl_div(torch.tensor(outputs), torch.tensor(target), reduction="none"))
