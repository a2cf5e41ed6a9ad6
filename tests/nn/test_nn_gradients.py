"""Gradients of the modules that `test_nn_layers` has no case for: containers, random ones, attention to itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nn_cases_layers import CONTAINERS

import ddp_bp as ddp
from ddp_bp import nn

few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


class Holder(nn.Module):
    """A module list and a module dict in use, with one module in both."""

    def __init__(self) -> None:
        shared = nn.Linear(3, 3, dtype=np.float64)
        self.list = nn.ModuleList([shared, nn.Tanh()])
        self.dict = nn.ModuleDict({"a": nn.Linear(3, 2, dtype=np.float64), "b": shared})

    def forward(self, x: ddp.Tensor) -> ddp.Tensor:
        for module in self.list:
            x = module(x)
        output: ddp.Tensor = self.dict["a"](self.dict["b"](x))
        return output


def linear(num_in: int, num_out: int) -> nn.Linear:
    return nn.Linear(num_in, num_out, dtype=np.float64)


# Module, and the shape of its input.
MODULES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "ModuleDict": (Holder, (2, 3)),
    "ModuleList": (Holder, (2, 3)),
    "Residual": (lambda: nn.Residual(linear(3, 2), linear(3, 2)), (4, 3)),
    "Sequential": (lambda: nn.Sequential(linear(3, 4), nn.Tanh(), nn.Residual(linear(4, 4))), (0, 3)),
    "Dropout": (lambda: nn.Dropout(0.4), (3, 4)),
    "attention with dropout": (lambda: nn.MultiheadAttention(4, 2, dropout=0.4, dtype=np.float64), (3, 2, 4)),
    "recurrence with dropout": (lambda: nn.LSTM(3, 2, num_layers=2, dropout=0.4, dtype=np.float64), (3, 2, 3)),
}


def test_every_exported_module_is_checked() -> None:
    assert CONTAINERS - {"Module"} <= set(MODULES)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_gradients_match_central_differences(name: str) -> None:
    build, shape = MODULES[name]
    ddp.manual_seed(1)
    module = build()
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    tensors: dict[int, ddp.Tensor] = {}
    for part in module.modules():
        for attribute, value in vars(part).items():
            if isinstance(value, nn.Parameter):
                places.setdefault(id(value), []).append((part, attribute))
                tensors[id(value)] = value
    parameters = [ddp.tensor(value.numpy(), requires_grad=True) for value in tensors.values()]
    x = ddp.tensor(np.random.default_rng(0).standard_normal(shape), requires_grad=True)

    def run(x: ddp.Tensor, *values: ddp.Tensor) -> list[ddp.Tensor]:
        for where, value in zip(places.values(), values, strict=True):
            for part, attribute in where:
                setattr(part, attribute, value)
        inputs = (x, x, x) if isinstance(module, nn.MultiheadAttention) else (x,)
        # The same draws in every run.
        with ddp.random_stream(1, 2, 3):
            output = module(*inputs)
        return [output[0] if isinstance(output, tuple) else output]

    ddp.gradcheck(run, x, *parameters)


@st.composite
def masked(draw: Any) -> dict[str, Any]:
    num_heads, size = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2]))
    num_samples, length = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 5]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    attn = draw(st.sampled_from([None, "bool", "float", "each"]))
    # Every query may look at the first key, as PyTorch gives NaN to those that may look at nothing.
    shape = (num_samples * num_heads, length, length) if attn == "each" else (length, length)
    mask = None
    if attn is not None:
        mask = rng.random(shape) < 0.4
        mask[..., 0] = False
        if attn == "float":
            mask = np.where(mask, -np.inf, rng.standard_normal(shape))
    padding = None
    if draw(st.booleans()) and (attn is None or mask is None or mask.dtype == bool):
        padding = rng.random((num_samples, length)) < 0.4
        padding[:, 0] = False
    return {
        "num_heads": num_heads,
        "x": rng.standard_normal((num_samples, length, num_heads * size)),
        "mask": mask,
        "padding": padding,
        "is_causal": draw(st.booleans()) and mask is None and padding is None,
        "need_weights": draw(st.booleans()),
    }


@pytest.mark.parity
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-5)])
def test_attention_to_itself_agrees_with_pytorch(dtype: Any, tolerance: float) -> None:
    torch = pytest.importorskip("torch")
    close = {"rtol": tolerance, "atol": tolerance}

    @few
    @given(drawn=masked())
    def agrees(drawn: dict[str, Any]) -> None:
        width, num_heads = drawn["x"].shape[2], drawn["num_heads"]
        ours = nn.MultiheadAttention(width, num_heads, batch_first=True, dtype=dtype)
        theirs = torch.nn.MultiheadAttention(width, num_heads, batch_first=True)
        theirs = theirs.to(torch.float64 if dtype is np.float64 else torch.float32)
        ours.load_state_dict(theirs.state_dict())
        x = ddp.tensor(drawn["x"].astype(dtype), requires_grad=True)
        t = torch.tensor(drawn["x"].astype(dtype), requires_grad=True)
        mask, padding, is_causal = drawn["mask"], drawn["padding"], drawn["is_causal"]
        if mask is not None and mask.dtype != bool:
            mask = mask.astype(dtype)
        their_mask = np.triu(np.ones((x.shape[1],) * 2, bool), 1) if is_causal else mask
        y, weights = ours(
            *(x, x, x),
            key_padding_mask=padding,
            attn_mask=mask,
            is_causal=is_causal,
            need_weights=drawn["need_weights"],
        )
        u, their_weights = theirs(
            *(t, t, t),
            key_padding_mask=None if padding is None else torch.tensor(padding),
            attn_mask=None if their_mask is None else torch.tensor(their_mask),
            need_weights=drawn["need_weights"],
        )
        np.testing.assert_allclose(y.numpy(), u.detach().numpy(), **close)
        assert (weights is None) == (their_weights is None)
        if weights is not None:
            np.testing.assert_allclose(weights.numpy(), their_weights.detach().numpy(), **close)
        g = np.random.default_rng(0).standard_normal(y.shape).astype(dtype)
        y.backward(g)
        u.backward(torch.tensor(g))
        for a, b in zip([x, *ours.parameters()], [t, *theirs.parameters()], strict=True):
            np.testing.assert_allclose(a.grad, b.grad.numpy(), **close)

    agrees()
