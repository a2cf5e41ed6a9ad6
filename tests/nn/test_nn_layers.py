"""Every layer: gradients, PyTorch's numbers, names, text, arguments and start."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nn_cases_layers import CONTAINERS, LAYERS, OURS, Trial

import ddp_bp as ddp
from ddp_bp import nn

few = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
precisions = pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-5)])


def layer_names() -> set[str]:
    """The exported modules but the losses."""
    found = {name: getattr(nn, name) for name in nn.__all__ if inspect.isclass(getattr(nn, name))}
    return {name for name, cls in found.items() if issubclass(cls, nn.Module) and not issubclass(cls, nn.Loss)}


def test_every_exported_layer_is_tried() -> None:
    assert layer_names() == set(LAYERS) | set(OURS) | CONTAINERS


def build(name: str, trial: Trial, dtype: Any) -> nn.Module:
    cls = getattr(nn, name)
    takes_dtype = "dtype" in inspect.signature(cls).parameters
    module: nn.Module = cls(*trial.arguments, **trial.options, **({"dtype": dtype} if takes_dtype else {}))
    rng = np.random.default_rng(1)
    with ddp.no_grad():
        for parameter in module.parameters():
            parameter.copy_(rng.standard_normal(parameter.shape) * 0.5)
    return module


def arrays(trial: Trial, dtype: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.standard_normal(shape).astype(dtype) if isinstance(shape, tuple) else shape(rng) for shape in trial.inputs
    ]


def outputs(result: Any) -> list[Any]:
    """The tensors in what a module returns."""
    if isinstance(result, tuple):
        return [tensor for part in result for tensor in outputs(part)]
    return [] if result is None else [result]


@few
@given(data=st.data())
@pytest.mark.parametrize("name", sorted(LAYERS | OURS))
def test_gradients_match_central_differences(name: str, data: st.DataObject) -> None:
    trial = data.draw((LAYERS | OURS)[name])
    module = build(name, trial, np.float64)
    places = [
        (part, attribute)
        for part in module.modules()
        for attribute, value in vars(part).items()
        if isinstance(value, nn.Parameter)
    ]
    inputs = [ddp.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays(trial, np.float64)]
    parameters = [ddp.tensor(getattr(part, attribute).numpy(), requires_grad=True) for part, attribute in places]

    def run(*values: ddp.Tensor) -> list[ddp.Tensor]:
        for (part, attribute), value in zip(places, values[len(inputs) :], strict=True):
            setattr(part, attribute, value)
        return outputs(module(*values[: len(inputs)]))

    ddp.gradcheck(run, *inputs, *parameters)


@pytest.mark.parity
@precisions
@pytest.mark.parametrize("name", sorted(LAYERS))
def test_agrees_with_pytorch(name: str, dtype: Any, tolerance: float) -> None:
    torch = pytest.importorskip("torch")
    close = {"rtol": tolerance, "atol": tolerance}

    @few
    @given(trial=LAYERS[name])
    def agrees(trial: Trial) -> None:
        ours = build(name, trial, dtype)
        theirs = getattr(torch.nn, name)(*trial.arguments, **trial.options)
        theirs = theirs.to(torch.float64 if dtype is np.float64 else torch.float32)
        state = ours.state_dict()
        assert list(state) == list(theirs.state_dict())
        theirs.load_state_dict({key: torch.tensor(value) for key, value in state.items()}, strict=True)
        if name != "MultiheadAttention":
            assert repr(ours) == repr(theirs)
        for training in (True, True, False):
            ours.train(training).zero_grad()
            theirs.train(training).zero_grad()
            given_arrays = arrays(trial, dtype)
            x = [ddp.tensor(a, requires_grad=a.dtype.kind == "f") for a in given_arrays]
            t = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in given_arrays]
            ys, us = outputs(ours(*x)), outputs(theirs(*t))
            total, their_total = ddp.tensor(np.zeros((), dtype)), 0
            rng = np.random.default_rng(2)
            for y, u in zip(ys, us, strict=True):
                np.testing.assert_allclose(y.numpy(), u.detach().numpy(), **close)
                weights = np.asarray(rng.standard_normal(y.shape)).astype(dtype)
                total = total + (y * weights).sum()
                their_total = their_total + (u * torch.tensor(weights)).sum()
            total.backward()
            their_total.backward()
            for a, b in zip([*x, *ours.parameters()], [*t, *theirs.parameters()], strict=True):
                wanted = np.zeros(a.shape) if b.grad is None else b.grad.numpy()
                np.testing.assert_allclose(np.zeros(a.shape) if a.grad is None else a.grad, wanted, **close)
            for key, value in ours.state_dict().items():
                np.testing.assert_allclose(value, theirs.state_dict()[key].numpy(), err_msg=key, **close)

    agrees()


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(set(LAYERS) - {"RNN", "GRU", "LSTM"}))
def test_arguments_come_in_pytorchs_order(name: str) -> None:
    torch = pytest.importorskip("torch")
    ours = inspect.signature(getattr(nn, name)).parameters.values()
    theirs = inspect.signature(getattr(torch.nn, name)).parameters
    positional = [p.name for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(theirs)[: len(positional)] or name == "Embedding" or "Flatten" in name or not positional
    for parameter in ours:
        if parameter.name != "dtype" and name != "Flatten" and theirs:
            default = theirs[parameter.name].default if parameter.name in theirs else None
            assert parameter.default == default or parameter.name == "dim", parameter.name


STARTS = {
    "Conv1d": (30, 40, 5),
    "Conv2d": (16, 30, 5),
    "ConvTranspose2d": (16, 30, 5),
    "Bilinear": (20, 30, 40),
    "Embedding": (200, 50),
    "MultiheadAttention": (60, 2),
    "RNN": (40, 50),
    "GRU": (40, 50),
    "LSTM": (40, 50),
    "LayerNorm": (50,),
    "RMSNorm": (50,),
    "GroupNorm": (2, 50),
    "BatchNorm1d": (50,),
    "BatchNorm2d": (50,),
    "Linear": (60, 50),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(STARTS))
def test_default_initialisation_is_that_of_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    ddp.manual_seed(0)
    ours, theirs = (getattr(source, name)(*STARTS[name]) for source in (nn, torch.nn))
    for (key, p), (their_key, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert key == their_key and p.shape == tuple(q.shape) and p.dtype == np.float32
        if p.numel() > 1000:
            assert p.numpy().std() == pytest.approx(q.std().item(), rel=0.05)
        values, wanted = p.numpy(), q.detach().numpy()
        is_constant = wanted.std() == 0
        assert (values.std() == 0) == is_constant
        if is_constant:
            np.testing.assert_array_equal(values, wanted)
        elif name != "Embedding":
            assert np.abs(values).max() == pytest.approx(np.abs(wanted).max(), rel=0.15)
