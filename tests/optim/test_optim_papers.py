"""Lion, LARS and LAMB, which PyTorch does not have, against the formulas of their papers, parameter by parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ddp_bp as ddp
from ddp_bp import nn, optim

Reference = Callable[[np.ndarray, np.ndarray, dict[str, Any], int], np.ndarray]


def lion(beta1: float, beta2: float, lr: float, weight_decay: float) -> Reference:
    """Chen et al., 2023, program 1."""

    def step(w: np.ndarray, g: np.ndarray, kept: dict[str, Any], t: int) -> np.ndarray:
        m = kept.get("m", np.zeros_like(w))
        c = beta1 * m + (1 - beta1) * g
        kept["m"] = beta2 * m + (1 - beta2) * g
        return w - lr * (np.sign(c) + weight_decay * w)

    return step


def lars(momentum: float, lr: float, weight_decay: float, trust: float) -> Reference:
    """You, Gitman and Ginsburg, 2017, algorithm 1."""

    def step(w: np.ndarray, g: np.ndarray, kept: dict[str, Any], t: int) -> np.ndarray:
        w_norm, g_norm = np.linalg.norm(w.ravel()), np.linalg.norm(g.ravel())
        local = trust * w_norm / (g_norm + weight_decay * w_norm) if w_norm and g_norm else 1.0
        kept["v"] = momentum * kept.get("v", np.zeros_like(w)) + lr * local * (g + weight_decay * w)
        return w - kept["v"]

    return step


def lamb(beta1: float, beta2: float, lr: float, eps: float, weight_decay: float) -> Reference:
    """You et al., 2020, algorithm 2, with the identity for phi."""

    def step(w: np.ndarray, g: np.ndarray, kept: dict[str, Any], t: int) -> np.ndarray:
        kept["m"] = beta1 * kept.get("m", np.zeros_like(w)) + (1 - beta1) * g
        kept["v"] = beta2 * kept.get("v", np.zeros_like(w)) + (1 - beta2) * g * g
        r = (kept["m"] / (1 - beta1**t)) / (np.sqrt(kept["v"] / (1 - beta2**t)) + eps)
        update = r + weight_decay * w
        w_norm, update_norm = np.linalg.norm(w.ravel()), np.linalg.norm(update.ravel())
        ratio = w_norm / update_norm if w_norm and update_norm else 1.0
        return w - lr * ratio * update

    return step


CASES: list[tuple[Callable[..., optim.Optimizer], Reference]] = [
    (lambda p: optim.Lion(p), lion(0.9, 0.99, 1e-4, 0.0)),
    (lambda p: optim.Lion(p, lr=0.003, betas=(0.8, 0.95), weight_decay=0.1), lion(0.8, 0.95, 0.003, 0.1)),
    (lambda p: optim.LARS(p), lars(0.9, 1e-3, 0.0, 1e-3)),
    (
        lambda p: optim.LARS(p, lr=0.5, momentum=0.8, weight_decay=0.01, trust_coefficient=0.1),
        lars(0.8, 0.5, 0.01, 0.1),
    ),
    (lambda p: optim.LARS(p, lr=2.0, momentum=0.0, trust_coefficient=0.01), lars(0.0, 2.0, 0.0, 0.01)),
    (lambda p: optim.LAMB(p), lamb(0.9, 0.999, 1e-3, 1e-6, 0.01)),
    (
        lambda p: optim.LAMB(p, lr=0.02, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.0),
        lamb(0.8, 0.95, 0.02, 1e-4, 0.0),
    ),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-8), (np.float32, 1e-4)])
@pytest.mark.parametrize(("make", "reference"), CASES)
def test_fifty_steps_of_an_mlp(
    make: Callable[..., optim.Optimizer], reference: Reference, dtype: Any, tolerance: float
) -> None:
    ddp.manual_seed(0)
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Linear(8, 160, dtype=dtype),
        nn.Tanh(),
        nn.Linear(160, 16, dtype=dtype),
        nn.ReLU(),
        nn.Linear(16, 4, dtype=dtype),
    )
    with ddp.no_grad():
        next(model.parameters()).mul_(0.5)
        dict(model.named_parameters())["4.bias"].fill_(0.0)
    optimizer = make(model.named_parameters())
    weights = {name: value.astype(np.float64) for name, value in model.state_dict().items()}
    kept: dict[str, dict[str, Any]] = {name: {} for name in weights}
    shadow = nn.Sequential(
        nn.Linear(8, 160, dtype=np.float64),
        nn.Tanh(),
        nn.Linear(160, 16, dtype=np.float64),
        nn.ReLU(),
        nn.Linear(16, 4, dtype=np.float64),
    )
    for step in range(50):
        shadow.load_state_dict(weights)
        inputs, labels = rng.standard_normal((20, 8)).astype(dtype), rng.integers(0, 4, 20)
        loss = nn.CrossEntropyLoss()(model(ddp.tensor(inputs)), ddp.tensor(labels))
        expected = nn.CrossEntropyLoss()(shadow(ddp.tensor(inputs.astype(np.float64))), ddp.tensor(labels))
        assert loss.item() == pytest.approx(expected.item(), rel=tolerance), step
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        shadow.zero_grad()
        expected.backward()
        for name, parameter in shadow.named_parameters():
            assert parameter.grad is not None
            weights[name] = reference(weights[name], parameter.grad, kept[name], step + 1)
    for name, value in model.state_dict().items():
        np.testing.assert_allclose(value, weights[name], rtol=100 * tolerance, atol=10 * tolerance)
    assert optimizer.num_steps == 50


def test_groups_that_do_not_adapt_take_plain_steps() -> None:
    rng = np.random.default_rng(0)
    start, gradient = rng.standard_normal(6), rng.standard_normal(6)
    plain = optim.SGD([nn.Parameter(start)], lr=0.1, momentum=0.9, weight_decay=0.01)
    layerwise = optim.LARS([{"params": nn.Parameter(start), "adapt": False}], lr=0.1, momentum=0.9, weight_decay=0.01)
    adam = optim.AdamW([nn.Parameter(start)], lr=0.1, eps=1e-6, weight_decay=0.01)
    lamb = optim.LAMB([nn.Parameter(start)], lr=0.1, adapt=False)
    for optimizer in (plain, layerwise, adam, lamb):
        for _ in range(3):
            optimizer.flat.gradient[:] = gradient
            optimizer.flat.parameters[0].grad = optimizer.flat.gradient
            optimizer.step()
    np.testing.assert_allclose(layerwise.flat.data, plain.flat.data, rtol=1e-12)
    np.testing.assert_allclose(lamb.flat.data, adam.flat.data, rtol=1e-12)
