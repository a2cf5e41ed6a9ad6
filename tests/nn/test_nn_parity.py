"""The same numbers, names and defaults as PyTorch."""

from __future__ import annotations

import inspect
from typing import Any

import loss_cases
import numpy as np
import pytest
from nn_cases_layers import CONTAINERS, LAYERS, OURS

import ddp_bp as ddp
from ddp_bp import nn
from ddp_bp.nn.models import mlp

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

MODULES = {
    "Linear": ((5, 4), (3, 5)),
    "ReLU": ((), (3, 5)),
    "Tanh": ((), (3, 5)),
    "Sigmoid": ((), (3, 5)),
    "Flatten": ((), (3, 5, 2)),
    "Identity": ((), (3, 5)),
}
# Random or made of others: covered by tests of their own.
ELSEWHERE = {"Buffer", "Dropout", "Loss", "Module", "Parameter", "Sequential"}
# The layers of test_nn_layers.
ELSEWHERE |= (set(LAYERS) | set(OURS) | CONTAINERS) - set(MODULES)

precisions = pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-5)])


def test_every_exported_class_is_compared() -> None:
    classes = {name for name in nn.__all__ if inspect.isclass(getattr(nn, name))}
    assert classes == set(MODULES) | {case.name for case in loss_cases.CASES} | ELSEWHERE


def copy_to_torch(ours: nn.Module, theirs: Any) -> None:
    theirs.load_state_dict({name: torch.tensor(value) for name, value in ours.state_dict().items()}, strict=True)


@precisions
@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str, dtype: Any, tolerance: float) -> None:
    arguments, shape = MODULES[name]
    options = {"dtype": dtype} if name == "Linear" else {}
    ours = getattr(nn, name)(*arguments, **options)
    theirs = getattr(torch.nn, name)(*arguments).to(torch.float64 if dtype is np.float64 else torch.float32)
    copy_to_torch(ours, theirs)
    data = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    x, t = ddp.tensor(data, requires_grad=True), torch.tensor(data, requires_grad=True)
    y, u = ours(x), theirs(t)
    np.testing.assert_allclose(y.numpy(), u.detach().numpy(), rtol=tolerance, atol=tolerance)
    gradient = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
    y.backward(gradient)
    u.backward(torch.tensor(gradient))
    np.testing.assert_allclose(x.grad, t.grad.numpy(), rtol=tolerance, atol=tolerance)
    for (_, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=tolerance, atol=tolerance)
    assert str(ours) == str(theirs)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@precisions
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("case", loss_cases.CASES, ids=lambda case: f"{case.name}-{'-'.join(case.arguments)}")
def test_losses(case: loss_cases.LossCase, reduction: str, dtype: Any, tolerance: float) -> None:
    arguments = {"reduction": reduction, **case.arguments}
    theirs = {
        name: torch.tensor(value.astype(dtype)) if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }
    batch = [a if a.dtype == np.int64 else a.astype(dtype) for a in case.batch(np.random.default_rng(0), 6)]
    differentiated = [a.dtype != np.int64 and not case.name.startswith("CrossEntropy") for a in batch]
    differentiated[0] = True
    xs = [ddp.tensor(a, requires_grad=d) for a, d in zip(batch, differentiated, strict=True)]
    ts = [torch.tensor(a, requires_grad=d) for a, d in zip(batch, differentiated, strict=True)]
    ours = getattr(nn, case.name)(**arguments)
    loss, expected = ours(*xs), getattr(torch.nn, case.name)(**theirs)(*ts)
    np.testing.assert_allclose(loss.numpy(), expected.detach().numpy(), rtol=tolerance, atol=tolerance)
    loss.sum().backward()
    expected.sum().backward()
    for x, t, d in zip(xs, ts, differentiated, strict=True):
        if d:
            np.testing.assert_allclose(x.grad, t.grad.numpy(), rtol=tolerance, atol=tolerance)
    if reduction == "mean":
        total, count = ours.total(*xs)
        assert total.item() / count == pytest.approx(expected.item(), rel=tolerance)


def test_default_initialisation_has_the_same_range() -> None:
    ddp.manual_seed(0)
    torch.manual_seed(0)
    ours, theirs = nn.Linear(400, 300), torch.nn.Linear(400, 300)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert np.abs(p.numpy()).max() == pytest.approx(q.abs().max().item(), rel=0.02)
        assert p.numpy().std() == pytest.approx(q.std().item(), rel=0.1)


def test_state_goes_both_ways() -> None:
    ours = mlp((4, 2), 3, hidden=[5])
    theirs = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    ours.load_state_dict(theirs.state_dict())
    data = np.random.default_rng(0).standard_normal((7, 4, 2)).astype(np.float32)
    np.testing.assert_allclose(ours(ddp.tensor(data)).numpy(), theirs(torch.tensor(data)).detach().numpy(), atol=1e-5)
    fresh = mlp((4, 2), 3, hidden=[5])
    copy_to_torch(fresh, theirs)
    np.testing.assert_allclose(fresh(ddp.tensor(data)).numpy(), theirs(torch.tensor(data)).detach().numpy(), atol=1e-5)


def signature_of(function: Any) -> dict[str, inspect.Parameter] | None:
    """The parameters of a function of PyTorch, or None where Python cannot see them."""
    try:
        parameters = dict(inspect.signature(function).parameters)
    except ValueError:
        return None
    return None if "args" in parameters else parameters


def test_functions_and_losses_take_pytorchs_arguments_and_defaults() -> None:
    pairs = [(getattr(nn, case.name), getattr(torch.nn, case.name)) for case in loss_cases.CASES]
    for name in set(nn.functional.__all__) - {"shard_sum", "sync_batch_norm"}:
        pairs.append((getattr(nn.functional, name), getattr(torch.nn.functional, name)))
    for ours, theirs in pairs:
        wanted = signature_of(theirs)
        for name, parameter in inspect.signature(ours).parameters.items() if wanted else ():
            if name == "stream_key":  # ours: PyTorch has no streams per module
                continue
            assert name in wanted, (ours, name)
            assert parameter.default in (wanted[name].default, inspect.Parameter.empty), (ours, name)


def test_arguments_come_in_pytorchs_order() -> None:
    for name in (*MODULES, "Dropout"):
        ours = list(inspect.signature(getattr(nn, name)).parameters)
        theirs = list(inspect.signature(getattr(torch.nn, name)).parameters)
        positional = [argument for argument in ours if argument != "dtype"]
        assert theirs[: len(positional)] == positional or name in ("ReLU", "Identity"), name
