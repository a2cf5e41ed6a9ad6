"""The same losses as PyTorch's optimizers over 50 steps, from the same weights and batches."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import ddp_bp as ddp
from ddp_bp import nn, optim

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

SETTINGS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.05, "momentum": 0.9}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.01}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.3}),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-8), (np.float32, 1e-4)])
@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_fifty_steps_of_an_mlp(name: str, options: dict[str, Any], dtype: Any, tolerance: float) -> None:
    ddp.manual_seed(0)
    rng = np.random.default_rng(0)
    ours = nn.Sequential(
        nn.Linear(8, 16, dtype=dtype),
        nn.Tanh(),
        nn.Linear(16, 16, dtype=dtype),
        nn.ReLU(),
        nn.Linear(16, 4, dtype=dtype),
    )
    theirs = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
    ).to(torch.float64 if dtype is np.float64 else torch.float32)
    theirs.load_state_dict({key: torch.tensor(value) for key, value in ours.state_dict().items()})
    our_optimizer = getattr(optim, name)(ours.parameters(), **options)
    their_optimizer = getattr(torch.optim, name)(theirs.parameters(), **options)
    for step in range(50):
        inputs, labels = rng.standard_normal((20, 8)).astype(dtype), rng.integers(0, 4, 20)
        loss = nn.CrossEntropyLoss()(ours(ddp.tensor(inputs)), ddp.tensor(labels))
        expected = torch.nn.CrossEntropyLoss()(theirs(torch.tensor(inputs)), torch.tensor(labels))
        assert loss.item() == pytest.approx(expected.item(), rel=tolerance), step
        loss.backward()
        our_optimizer.step()
        our_optimizer.zero_grad()
        their_optimizer.zero_grad()
        expected.backward()
        their_optimizer.step()
    for key, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[key], value.numpy(), rtol=100 * tolerance, atol=10 * tolerance)


def test_every_optimizer_is_compared() -> None:
    assert {name for name, _ in SETTINGS} == set(optim.__all__) - {"Optimizer"}


@pytest.mark.parametrize("name", sorted({name for name, _ in SETTINGS}))
def test_defaults_are_those_of_pytorch(name: str) -> None:
    ours = inspect.signature(getattr(optim, name)).parameters
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    positional = [key for key, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(theirs)[: len(positional)]
    for key in positional[1:]:
        assert ours[key].default == theirs[key].default, key
