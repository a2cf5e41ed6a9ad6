"""Sigmoids and what is made of them, far out: as precise as PyTorch in double precision, or as the function itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ddp_bp as ddp
from ddp_bp.engine.ops.exponentials import logistic
from ddp_bp.nn import functional as F

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

Array = np.ndarray[Any, Any]

precisions = pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
# Sixteenths are the same numbers in every precision, and none is near the minimum of silu at -1.2785.
INPUTS = np.arange(-1600, 1601) / 16


def both(ours: Callable[..., Any], theirs: Callable[..., Any], *arrays: Array, dtype: Any) -> list[tuple[Array, Array]]:
    """What ours gives in `dtype` and theirs in double precision: the values, then each input's gradient."""
    xs = [ddp.tensor(a.astype(dtype), requires_grad=True) for a in arrays]
    ts = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in arrays]
    y, u = ours(*xs), theirs(*ts)
    y.sum().backward()
    u.sum().backward()
    assert y.dtype == dtype
    return [(y.numpy(), u.detach().numpy()), *((x.grad, t.grad.numpy()) for x, t in zip(xs, ts, strict=True))]


def assert_close(pairs: list[tuple[Array, Array]], tolerance: float, dtype: Any, smallest: float = 0.0) -> None:
    """Relative, but for numbers below the normal ones of `dtype` and, if given, `smallest`."""
    for got, wanted in pairs:
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=max(float(np.finfo(dtype).tiny), smallest))


@precisions
@pytest.mark.parametrize("side", ["below", "above"])
def test_sigmoid(side: str, dtype: Any, tolerance: float) -> None:
    # Above 0 the slope comes from 1 - y, in PyTorch as well, and cannot be finer than numbers near 1 are.
    a, smallest = (INPUTS[INPUTS <= 0], 0.0) if side == "below" else (INPUTS[INPUTS > 0], np.finfo(dtype).eps)
    assert_close(both(lambda x: x.sigmoid(), torch.sigmoid, a, dtype=dtype), tolerance, dtype, float(smallest))


@precisions
@pytest.mark.parametrize("name", ["silu", "softplus"])
def test_activations(name: str, dtype: Any, tolerance: float) -> None:
    pairs = both(getattr(F, name), getattr(torch.nn.functional, name), INPUTS, dtype=dtype)
    assert_close(pairs, tolerance, dtype, 1e-36 if dtype is np.float32 else 0.0)


@precisions
def test_softplus_of_other_curvatures(dtype: Any, tolerance: float) -> None:
    pairs = both(
        lambda x: F.softplus(x, 0.5, 15.0), lambda t: torch.nn.functional.softplus(t, 0.5, 15.0), INPUTS, dtype=dtype
    )
    assert_close(pairs, tolerance, dtype)


@precisions
def test_logarithm_of_a_sigmoid(dtype: Any, tolerance: float) -> None:
    # Below -88 the sigmoid of single precision is 0, in PyTorch as well.
    a = INPUTS[(INPUTS > -88) & (INPUTS <= 0)]
    assert_close(both(lambda x: x.sigmoid().log(), torch.nn.functional.logsigmoid, a, dtype=dtype), tolerance, dtype)
    above = both(lambda x: x.sigmoid().log(), torch.nn.functional.logsigmoid, INPUTS[INPUTS > 0], dtype=dtype)
    assert_close(above, tolerance, dtype, float(np.finfo(dtype).eps))


@precisions
def test_other_forms_of_the_logarithm_of_a_sigmoid(dtype: Any, tolerance: float) -> None:
    exact = torch.nn.functional.logsigmoid
    assert_close(both(lambda x: -F.softplus(-x, threshold=1e3), exact, INPUTS, dtype=dtype), tolerance, dtype)
    ones = np.ones_like(INPUTS).astype(dtype)

    def by_loss(x: ddp.Tensor) -> ddp.Tensor:
        return -F.binary_cross_entropy_with_logits(x, ddp.tensor(ones), reduction="none")

    assert_close(both(by_loss, exact, INPUTS, dtype=dtype), tolerance, dtype)


@precisions
@pytest.mark.parametrize("pos_weight", [None, 1.0, 0.25, 40.0])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_binary_cross_entropy(label: float, pos_weight: float | None, dtype: Any, tolerance: float) -> None:
    """Against -log(sigmoid), since the sum that PyTorch computes cancels where the loss is small."""
    target = np.full(INPUTS.shape, label, dtype)
    weight = None if pos_weight is None else ddp.tensor(np.array(pos_weight, dtype))

    def ours(x: ddp.Tensor) -> ddp.Tensor:
        return F.binary_cross_entropy_with_logits(x, ddp.tensor(target), reduction="none", pos_weight=weight)

    def theirs(t: Any) -> Any:
        of_label = -torch.nn.functional.logsigmoid(t if label else -t)
        return of_label * (pos_weight if label and pos_weight is not None else 1.0)

    assert_close(both(ours, theirs, INPUTS, dtype=dtype), tolerance, dtype)


@precisions
@pytest.mark.parametrize("pos_weight", [None, 3.0])
def test_binary_cross_entropy_of_soft_targets(pos_weight: float | None, dtype: Any, tolerance: float) -> None:
    # In 1/256, which single precision holds.
    target = np.random.default_rng(0).integers(1, 256, INPUTS.size) / 256
    weight = None if pos_weight is None else np.array(pos_weight)
    pairs = both(
        lambda x, t: F.binary_cross_entropy_with_logits(
            x, t, reduction="none", pos_weight=None if weight is None else ddp.tensor(weight.astype(dtype))
        ),
        lambda x, t: torch.nn.functional.binary_cross_entropy_with_logits(
            x, t, reduction="none", pos_weight=None if weight is None else torch.tensor(weight)
        ),
        INPUTS,
        target,
        dtype=dtype,
    )
    # A soft target's slope passes through 0.
    assert_close(pairs, tolerance, dtype, tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extremes_are_those_of_pytorch_and_warn_of_nothing(dtype: Any) -> None:
    a = np.array([-np.inf, -1e30, -1000.0, 0.0, 1000.0, 1e30, np.inf, np.nan]).astype(dtype)
    for ours, theirs in [
        (F.sigmoid, torch.sigmoid),
        (F.softplus, torch.nn.functional.softplus),
    ]:
        x, t = ddp.tensor(a, requires_grad=True), torch.tensor(a, requires_grad=True)
        y, u = ours(x), theirs(t)
        np.testing.assert_array_equal(y.numpy(), u.detach().numpy().astype(dtype))
    x, t = ddp.tensor(a[1:-2], requires_grad=True), torch.tensor(a[1:-2], requires_grad=True)
    F.silu(x).sum().backward()
    torch.nn.functional.silu(t).sum().backward()
    np.testing.assert_array_equal(x.grad, t.grad.numpy())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logistic_of_columns_in_place(dtype: Any) -> None:
    # NumPy's negative fails here, and so the gates of an LSTM of one unit would.
    for num_rows in range(1, 20):
        gates = np.random.default_rng(num_rows).standard_normal((num_rows, 8)).astype(dtype)
        for columns in (slice(0, 1), slice(3, 4), slice(1, 3), slice(5, 8)):
            expected = 1 / (1 + np.exp(-gates[:, columns].copy()))
            logistic(gates[:, columns], out=gates[:, columns])
            np.testing.assert_allclose(gates[:, columns], expected, rtol=1e-6)
