"""Profiling a model: operations know their module, and the model is afterwards as it was."""

from __future__ import annotations

import numpy as np
import pytest

from ddp_bp import nn
from ddp_bp.engine import tensor
from ddp_bp.nn.profiling import profiled


class Block(nn.Module):
    """A module in which an operation of its own stands between those of its children."""

    def __init__(self) -> None:
        self.first = nn.Linear(3, 3)
        self.again = self.first
        self.norm = nn.Sequential(nn.Tanh())

    def forward(self, x):
        return self.norm(self.first(x) * 2) + self.again(x)


def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((5, 3)).astype(np.float32), rng.integers(0, 3, 5)


def gradients(model: nn.Module) -> list[bytes]:
    model.zero_grad()
    inputs, targets = batch()
    nn.functional.cross_entropy(model(tensor(inputs)), tensor(targets)).backward()
    return [parameter.grad.tobytes() for parameter in model.parameters() if parameter.grad is not None]


def test_operations_know_the_innermost_module() -> None:
    model = nn.Sequential(Block(), nn.Linear(3, 3))
    with profiled(model) as recorder:
        gradients(model)
    assert [(call.operation, call.module) for call in recorder.calls] == [
        ("linear", "0.first"),
        ("mul", "0"),
        ("tanh", "0.norm.0"),
        ("linear", "0.first"),
        ("add", "0"),
        ("linear", "1"),
        ("cross_entropy", None),
    ]
    entered = sorted(recorder.module_calls, key=lambda called: called.span)
    assert [(called.path, called.kind) for called in entered] == [
        ("", "Sequential"),
        ("0", "Block"),
        ("0.first", "Linear"),
        ("0.norm", "Sequential"),
        ("0.norm.0", "Tanh"),
        ("0.first", "Linear"),
        ("1", "Linear"),
    ]
    assert [source.name for source in recorder.calls[0].inputs] == [None, "0.first.weight", "0.first.bias"]


def test_the_gradient_of_the_first_input_is_not_computed() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    with profiled(model) as recorder:
        gradients(model)
    first, relu, second, loss = recorder.calls
    assert first.gradients == (False, True, True)
    assert second.gradients == (True, True, True)
    assert relu.gradients == (True,)
    assert loss.gradients == (True, False)
    product = 2 * 5 * 3 * 4
    assert (first.forward_flops, first.backward_flops) == (product + 20, product + 20)
    assert (second.forward_flops, second.backward_flops) == (product + 15, 2 * product + 15)


def test_the_gradients_have_the_same_bits() -> None:
    model = nn.Sequential(Block(), nn.ReLU(), nn.Linear(3, 3))
    plain = gradients(model)
    with profiled(model):
        watched = gradients(model)
    assert plain == watched == gradients(model)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(Block(), nn.Linear(3, 3))
    own = model[0].forward
    vars(model[1])["forward"] = own
    before = [dict(vars(module)) for module in model.modules()]
    calls_before = type(model).__call__
    names = list(model.state_dict())
    with pytest.raises(ZeroDivisionError), profiled(model) as recorder:
        assert list(model.state_dict()) == names
        raise ZeroDivisionError
    assert [dict(vars(module)) for module in model.modules()] == before
    assert type(model).__call__ is calls_before
    gradients(model)
    assert recorder.calls == []
    assert recorder.module_calls == []


def test_a_module_that_raises_is_left() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(4, 3))
    with profiled(model) as recorder:
        with pytest.raises(ValueError, match="linear got"):
            gradients(model)
        tensor([1.0]) + 1
    assert recorder.calls[-1].module is None
    assert [called.path for called in recorder.module_calls] == ["0", "1", ""]
