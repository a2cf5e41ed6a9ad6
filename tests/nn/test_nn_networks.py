"""Whole networks in training follow PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ddp_bp as ddp
from ddp_bp import nn
from ddp_bp.optim import SGD


def make_convolutional(source: Any) -> Any:
    return source.Sequential(
        source.Conv2d(1, 6, 3, padding=1, bias=False),
        source.BatchNorm2d(6),
        source.ReLU(),
        source.MaxPool2d(2),
        source.Conv2d(6, 8, 3, stride=2, groups=2),
        source.GELU(),
        source.AdaptiveAvgPool2d(1),
        source.Flatten(),
        source.Linear(8, 3),
    )


def make_attentive(source: Any) -> Any:
    class Attentive(source.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.tokens = source.Embedding(9, 8)
            self.norm = source.LayerNorm(8)
            self.attention = source.MultiheadAttention(8, 2, batch_first=True)
            self.feed = source.Sequential(source.Linear(8, 16), source.GELU(approximate="tanh"), source.Linear(16, 8))
            self.head = source.Linear(8, 9, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, tokens: Any) -> Any:
            x = self.tokens(tokens)
            y = self.norm(x)
            x = x + self.attention(y, y, y, need_weights=False)[0]
            return self.head(x + self.feed(x))[:, 0]

    return Attentive()


def make_recurrent(source: Any) -> Any:
    class Recurrent(source.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.tokens = source.Embedding(9, 4)
            self.body = source.LSTM(4, 6, num_layers=2, batch_first=True, bidirectional=True)
            self.head = source.Linear(12, 9)

        def forward(self, tokens: Any) -> Any:
            return self.head(self.body(self.tokens(tokens))[0][:, -1])

    return Recurrent()


# The network, a batch of inputs, the number of classes and the learning rate.
NETWORKS: dict[str, tuple[Callable[[Any], Any], Callable[[np.random.Generator], np.ndarray], int, float]] = {
    "cnn": (make_convolutional, lambda rng: rng.standard_normal((8, 1, 10, 10)), 3, 0.05),
    "transformer": (make_attentive, lambda rng: rng.integers(0, 9, (8, 5)), 9, 0.003),
    "lstm": (make_recurrent, lambda rng: rng.integers(0, 9, (8, 5)), 9, 0.1),
}


@pytest.mark.parity
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-8), (np.float32, 1e-4)])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_fifty_steps_follow_those_of_pytorch(name: str, dtype: Any, tolerance: float) -> None:
    torch = pytest.importorskip("torch")
    build, draw, num_classes, lr = NETWORKS[name]
    torch.manual_seed(0)
    theirs = build(torch.nn).to(torch.float64 if dtype is np.float64 else torch.float32)
    ours = build(nn)
    for module in ours.modules():
        for attribute, value in vars(module).items():
            if isinstance(value, nn.Parameter):
                setattr(module, attribute, nn.Parameter(value.numpy().astype(dtype)))
            elif isinstance(value, nn.Buffer) and value.dtype.kind == "f":
                setattr(module, attribute, nn.Buffer(value.numpy().astype(dtype)))
    if name == "transformer":
        ours.head.weight = ours.tokens.weight
    ours.load_state_dict(theirs.state_dict())
    optimizer = SGD(ours.parameters(), lr=lr, momentum=0.9)
    their_optimizer = torch.optim.SGD(theirs.parameters(), lr=lr, momentum=0.9)
    rng = np.random.default_rng(0)
    for _ in range(50):
        data = draw(rng)
        data = data.astype(dtype) if data.dtype.kind == "f" else data
        target = rng.integers(0, num_classes, 8)
        loss = nn.functional.cross_entropy(ours(ddp.tensor(data)), target)
        expected = torch.nn.functional.cross_entropy(theirs(torch.tensor(data)), torch.tensor(target))
        assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
        optimizer.zero_grad()
        their_optimizer.zero_grad()
        loss.backward()
        expected.backward()
        optimizer.step()
        their_optimizer.step()
    ours.eval()
    theirs.eval()
    np.testing.assert_allclose(
        ours(ddp.tensor(data)).numpy(), theirs(torch.tensor(data)).detach().numpy(), rtol=tolerance, atol=tolerance
    )
    theirs.load_state_dict({key: torch.tensor(value) for key, value in ours.state_dict().items()}, strict=True)
