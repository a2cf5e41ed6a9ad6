"""Numbers far from 1, rows by the thousand and several blocks: against plain formulas in double precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import ddp_bp as ddp
from ddp_bp.nn import functional as F

Array = np.ndarray[Any, Any]

# Infinities and numbers whose squares are.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def logits(num_rows: int = 1100, num_classes: int = 65) -> Array:
    """Ordinary rows, and among them rows that are far off, wide apart, or hold infinities."""
    a = np.random.default_rng(0).standard_normal((num_rows, num_classes)).astype(np.float32)
    a[3] += 300
    a[5] -= 300
    a[700] *= 200
    a[701, 4:] = -math.inf
    a[702, 7] = 1e38
    a[703] = -1e38
    return a


def shares(a: Array) -> Array:
    a = a.astype(np.float64)
    e = np.exp(a - a.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def log_shares(a: Array) -> Array:
    a = a.astype(np.float64)
    shifted = a - a.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def test_softmax() -> None:
    a = logits()
    x = ddp.tensor(a, requires_grad=True)
    y = x.softmax(-1)
    expected = shares(a)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-5, atol=1e-30)
    g = np.random.default_rng(1).standard_normal(a.shape).astype(np.float32)
    y.backward(g)
    np.testing.assert_allclose(x.grad, expected * (g - (expected * g).sum(1, keepdims=True)), atol=1e-6)


def test_softmax_over_another_axis() -> None:
    a = logits()
    for axis, moved in [(0, a.T), (1, a[:10].reshape(2, 5, 65).transpose(0, 2, 1))]:
        y = ddp.tensor(moved).softmax(axis).numpy()
        np.testing.assert_allclose(np.moveaxis(y, axis, -1), shares(np.moveaxis(moved, axis, -1)), 1e-5, 1e-30)


def test_a_row_does_not_depend_on_the_others() -> None:
    a = logits()
    changed = a.copy()
    changed[600:650] += 1000
    kept = np.r_[0:600, 650:1100]
    for function in (lambda x: x.softmax(-1), lambda x: x.log_softmax(-1)):
        one, other = (function(ddp.tensor(values)).numpy()[kept] for values in (a, changed))
        np.testing.assert_array_equal(one, other)


def test_nan_and_infinity_stay_in_their_rows() -> None:
    a = logits()
    a[10, 3], a[11, 3], a[12] = math.nan, math.inf, -math.inf
    target = np.zeros(len(a), np.int64)
    others = np.delete(np.arange(len(a)), [10, 11, 12])
    for result in (
        ddp.tensor(a).softmax(-1).numpy(),
        ddp.tensor(a).log_softmax(-1).numpy(),
        F.cross_entropy(ddp.tensor(a), ddp.tensor(target), reduction="none").numpy()[:, None],
    ):
        assert np.isnan(result[10:13]).any(1).all() and not np.isnan(result[others]).any()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy(label_smoothing: float) -> None:
    a = logits()
    rng = np.random.default_rng(2)
    target = rng.integers(0, 65, len(a))
    # Their own class is the best one, so far ahead that the loss is nearly 0; its own class is hopeless.
    a[20:30, 2], target[20:30], a[30, 2], target[30] = 17, 2, -200, 2
    target[701:704] = 2
    if label_smoothing:
        a[701, 4:] = -1e4
    logs = log_shares(a)
    spread = label_smoothing / 65
    expected = -(1 - label_smoothing) * logs[np.arange(len(a)), target]
    if label_smoothing:
        expected = expected - spread * logs.sum(1)
    x = ddp.tensor(a, requires_grad=True)
    losses = F.cross_entropy(x, ddp.tensor(target), reduction="none", label_smoothing=label_smoothing)
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5, atol=5e-7)
    g = rng.standard_normal(len(a)).astype(np.float32)
    losses.backward(g)
    wanted = shares(a) - spread
    wanted[np.arange(len(a)), target] -= 1 - label_smoothing
    np.testing.assert_allclose(x.grad, wanted * g[:, None], atol=2e-6)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(200, 150), (70, 200), (130, 130)])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("has_mask", [False, True])
def test_attention(num_queries: int, num_keys: int, is_causal: bool, has_mask: bool) -> None:
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((3, n, 8)).astype(np.float32) for n in (num_queries, num_keys, num_keys))
    q[0, 5] *= 40
    q[1, 6] *= 1e3
    k[2] += 30
    mask = np.zeros((num_queries, num_keys), np.float32)
    if has_mask:
        mask = rng.standard_normal(mask.shape).astype(np.float32)
        mask[9] = -math.inf
        mask[12:80, 0] = -math.inf
    seen = np.tril(np.ones_like(mask)) if is_causal else np.ones_like(mask)

    def reference(dtype: Any) -> tuple[Array, list[Array]]:
        qd, kd, vd = (a.astype(dtype) for a in (q, k, v))
        scores = qd @ kd.transpose(0, 2, 1) / math.sqrt(8) + mask
        scores = np.where(seen > 0, scores, -math.inf)
        highest = scores.max(-1, keepdims=True)
        e = np.exp(scores - np.where(np.isfinite(highest), highest, 0))
        p = e / np.maximum(e.sum(-1, keepdims=True), 1e-300)
        slope = g @ vd.transpose(0, 2, 1)
        slope = p * (slope - (slope * p).sum(-1, keepdims=True))
        turned = slope.transpose(0, 2, 1)
        return p @ vd, [slope @ kd / math.sqrt(8), turned @ qd / math.sqrt(8), p.transpose(0, 2, 1) @ g]

    g = rng.standard_normal((3, num_queries, 8)).astype(np.float32)
    expected, gradients = reference(np.float64)
    xs = [ddp.tensor(a, requires_grad=True) for a in (q, k, v)]
    y = F.scaled_dot_product_attention(*xs, attn_mask=mask if has_mask else None, is_causal=is_causal)
    y.backward(g)
    np.testing.assert_allclose(y.numpy(), expected, atol=2e-3)
    for x, wanted in zip(xs, gradients, strict=True):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(x.grad / scale, wanted / scale, atol=1e-4)
    exact = [ddp.tensor(a.astype(np.float64), requires_grad=True) for a in (q, k, v)]
    y = F.scaled_dot_product_attention(
        *exact, attn_mask=mask.astype(np.float64) if has_mask else None, is_causal=is_causal
    )
    y.backward(g.astype(np.float64))
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-9, atol=1e-10)
    for x, wanted in zip(exact, gradients, strict=True):
        np.testing.assert_allclose(x.grad, wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gelu_everywhere(dtype: Any) -> None:
    a = np.concatenate([np.linspace(-12, 12, 70001), [-3e38, -1e20, -1e9, 1e9, 1e20, 3e38]]).astype(dtype)
    x = ddp.tensor(a, requires_grad=True)
    y = F.gelu(x)
    y.sum().backward()
    below = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in a.astype(np.float64).tolist()])
    with np.errstate(under="ignore", over="ignore"):
        density = np.exp(-0.5 * np.square(np.clip(a.astype(np.float64), -50, 50))) / math.sqrt(2 * math.pi)
    tolerance = {"rtol": 3e-7, "atol": 4e-7} if dtype is np.float32 else {"rtol": 1e-15, "atol": 3e-16}
    np.testing.assert_allclose(y.numpy(), a * below, **tolerance)
    np.testing.assert_allclose(x.grad, below + np.where(np.abs(a) < 50, a, 0) * density, **tolerance)


@pytest.mark.parametrize("function", [F.gelu, F.silu, F.softplus, lambda x: F.gelu(x, "tanh")])
def test_activations_keep_the_memory_layout(function: Any) -> None:
    a = np.random.default_rng(4).standard_normal((30, 40, 50)).astype(np.float32)
    turned = function(ddp.tensor(a.transpose(2, 0, 1))).numpy()
    np.testing.assert_array_equal(turned, function(ddp.tensor(a)).numpy().transpose(2, 0, 1))
    assert turned.strides == a.transpose(2, 0, 1).strides


def test_embedding_sums_each_rows_gradients() -> None:
    rng = np.random.default_rng(5)
    numbers, g = rng.integers(0, 40, (50, 60)), rng.standard_normal((50, 60, 7))
    weight = ddp.tensor(np.zeros((50, 7)), requires_grad=True)
    F.embedding(ddp.tensor(numbers), weight, padding_idx=3).backward(g)
    expected = np.zeros((50, 7))
    np.add.at(expected, numbers, g)
    expected[3] = 0
    np.testing.assert_allclose(weight.grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_layer_norm_of_many_rows(offset: float) -> None:
    rng = np.random.default_rng(6)
    a, g = rng.standard_normal((2, 1000, 96)).astype(np.float32)
    a += np.float32(offset)
    w, b = rng.standard_normal((2, 96)).astype(np.float32)
    x, weight, bias = (ddp.tensor(v, requires_grad=True) for v in (a, w, b))
    y = F.layer_norm(x, (96,), weight, bias)
    y.backward(g)
    exact = a.astype(np.float64)
    deviation = np.sqrt(exact.var(1, keepdims=True) + 1e-5)
    n = (exact - exact.mean(1, keepdims=True)) / deviation
    gw = g * w.astype(np.float64)
    wanted = (gw - gw.mean(1, keepdims=True) - n * (gw * n).mean(1, keepdims=True)) / deviation
    np.testing.assert_allclose(y.numpy(), n * w + b, atol=1e-4 if offset else 3e-6)
    np.testing.assert_allclose(x.grad, wanted, atol=1e-4 if offset else 3e-6)
    np.testing.assert_allclose(weight.grad, (g * n).sum(0), atol=3e-3 if offset else 1e-4)
    np.testing.assert_allclose(bias.grad, g.astype(np.float64).sum(0), atol=1e-4)
