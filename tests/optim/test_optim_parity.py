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
# Its threads wait for each other by spinning, which takes long where cores are shared.
torch.set_num_threads(1)

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
    ("SGD", {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01, "maximize": True}),
    ("Adam", {"lr": 0.01, "amsgrad": True, "weight_decay": 0.01}),
    ("AdamW", {"lr": 0.003, "amsgrad": True, "maximize": True}),
    ("NAdam", {}),
    ("NAdam", {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.01, "momentum_decay": 0.01}),
    ("NAdam", {"lr": 0.01, "weight_decay": 0.3, "decoupled_weight_decay": True}),
    ("NAdam", {"maximize": True}),
    ("RMSprop", {}),
    ("RMSprop", {"lr": 0.003, "alpha": 0.9, "weight_decay": 0.01, "momentum": 0.9, "centered": True}),
    ("RMSprop", {"lr": 0.001, "centered": True, "maximize": True}),
    ("Adagrad", {}),
    ("Adagrad", {"lr": 0.05, "lr_decay": 0.1, "weight_decay": 0.01, "initial_accumulator_value": 0.1}),
    ("Adagrad", {"eps": 1e-6, "maximize": True}),
    ("Adadelta", {}),
    ("Adadelta", {"lr": 0.5, "rho": 0.8, "eps": 1e-5, "weight_decay": 0.01}),
    ("Adadelta", {"maximize": True}),
]
# What PyTorch does not have is compared with the papers, in test_optim_papers.
FROM_PAPERS = {"LAMB", "LARS", "Lion"}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-8), (np.float32, 1e-4)])
@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_fifty_steps_of_an_mlp(
    name: str, options: dict[str, Any], dtype: Any, tolerance: float, request: pytest.FixtureRequest
) -> None:
    if dtype is np.float64:
        # NAdam keeps its product of momenta in this dtype.
        request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
        torch.set_default_dtype(torch.float64)
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
    classes = {name for name in optim.__all__ if inspect.isclass(getattr(optim, name))}
    optimizers = {name for name in classes if issubclass(getattr(optim, name), optim.Optimizer)}
    assert {name for name, _ in SETTINGS} | FROM_PAPERS == optimizers - {"Optimizer", "LayerwiseOptimizer"}


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
def test_groups_with_settings_of_their_own_and_accumulated_gradients(name: str) -> None:
    """Each step takes the gradients of two batches; the groups come in another order than the parameters."""
    ddp.manual_seed(1)
    rng = np.random.default_rng(1)
    ours = nn.Sequential(nn.Linear(6, 9, dtype=np.float64), nn.Tanh(), nn.Linear(9, 3, dtype=np.float64))
    theirs = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3)).double()
    theirs.load_state_dict({key: torch.tensor(value) for key, value in ours.state_dict().items()})

    def groups(model: Any) -> list[dict[str, Any]]:
        own = {"weight_decay": 0.1} | ({"momentum": 0.9} if name != "Adam" else {"betas": (0.5, 0.9)})
        weights = [parameter for key, parameter in model.named_parameters() if key.endswith("weight")]
        biases = [parameter for key, parameter in model.named_parameters() if key.endswith("bias")]
        return [{"params": biases, "lr": 0.003}, {"params": weights, **own}]

    our_optimizer = getattr(optim, name)(groups(ours), lr=0.01)
    their_optimizer = getattr(torch.optim, name)(groups(theirs), lr=0.01)
    for step in range(50):
        our_optimizer.zero_grad()
        their_optimizer.zero_grad()
        for _ in range(2):
            inputs, labels = rng.standard_normal((10, 6)), rng.integers(0, 3, 10)
            loss = nn.CrossEntropyLoss()(ours(ddp.tensor(inputs)), ddp.tensor(labels))
            expected = torch.nn.CrossEntropyLoss()(theirs(torch.tensor(inputs)), torch.tensor(labels))
            assert loss.item() == pytest.approx(expected.item(), rel=1e-8), step
            loss.backward()
            expected.backward()
        our_optimizer.step()
        their_optimizer.step()
        if step == 25:
            for optimizer in (our_optimizer, their_optimizer):
                optimizer.param_groups[1]["lr"] *= 0.5


@pytest.mark.parametrize("name", sorted({name for name, _ in SETTINGS}))
def test_defaults_are_those_of_pytorch(name: str) -> None:
    ours = inspect.signature(getattr(optim, name)).parameters
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    positional = [key for key, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(theirs)[: len(positional)]
    for key in positional[1:]:
        assert ours[key].default == theirs[key].default, key
