"""Modules: the tree, names, state, switches, text, and the layers' own behaviour."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import ddp_bp as ddp
from ddp_bp import nn
from ddp_bp.engine import FlatParameters
from ddp_bp.errors import InputError, ShapeError


class Net(nn.Module):
    def __init__(self) -> None:
        self.first = nn.Linear(3, 4)
        self.scale = nn.Parameter(np.ones(4, np.float32))
        self.seen = nn.Buffer(np.zeros((), np.int64))
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(4, 4, bias=False))
        self.tied = self.rest[1]

    def forward(self, input: ddp.Tensor) -> ddp.Tensor:
        return self.tied(self.rest(self.first(input) * self.scale))


def test_parameters_come_in_order_and_tied_ones_once() -> None:
    net = Net()
    names = [name for name, _ in net.named_parameters()]
    assert names == ["scale", "first.weight", "first.bias", "rest.1.weight"]
    assert [id(p) for p in net.parameters()] == [id(p) for _, p in net.named_parameters()]
    assert [name for name, _ in net.named_buffers()] == ["seen"]
    assert [name for name, _ in net.named_modules()] == ["", "first", "rest", "rest.0", "rest.1"]
    assert next(name for name, _ in net.named_parameters("net")) == "net.scale"
    assert len(list(net.children())) == 3


def test_state_has_every_name_and_is_a_copy() -> None:
    net = Net()
    state = net.state_dict()
    assert list(state) == ["scale", "seen", "first.weight", "first.bias", "rest.1.weight", "tied.weight"]
    assert all(isinstance(value, np.ndarray) for value in state.values())
    state["scale"][:] = 9
    assert net.scale.tolist() == [1.0] * 4


def test_state_goes_into_another_net() -> None:
    one, other = Net(), Net()
    state = one.state_dict()
    assert other.load_state_dict(state) == ([], [])
    for name, value in other.state_dict().items():
        np.testing.assert_array_equal(value, state[name])
    other.load_state_dict({name: value.astype(np.float64) for name, value in state.items()})
    assert other.scale.dtype == np.float32


def test_state_that_does_not_fit_is_listed_whole_and_changes_nothing() -> None:
    net = Net()
    state = net.state_dict()
    before = copy.deepcopy(state)
    state["first.weight"] = np.zeros((4, 2), np.float32)
    state["scale"] = np.full(4, 5.0, np.float32)
    state["extra"] = state.pop("seen")
    with pytest.raises(InputError) as caught:
        net.load_state_dict(state)
    message = str(caught.value)
    assert "first.weight: expected shape (4, 3), got (4, 2)" in message
    assert "missing: seen" in message and "unexpected: extra" in message
    np.testing.assert_array_equal(net.state_dict()["scale"], before["scale"])
    state["first.weight"] = before["first.weight"]
    assert net.load_state_dict(state, strict=False) == (["seen"], ["extra"])
    assert net.scale.tolist() == [5.0] * 4
    with pytest.raises(InputError, match="expected numbers"):
        net.load_state_dict({"scale": np.array(["a"] * 4)}, strict=False)


def test_loading_keeps_flat_parameters_flat() -> None:
    net = Net()
    flat = FlatParameters(net.named_parameters())
    net.load_state_dict({name: value * 0 + 1 for name, value in net.state_dict().items()})
    assert flat.data.tolist() == [1.0] * flat.size


def test_switches_reach_every_module() -> None:
    net = Net()
    assert net.training and net.eval() is net
    assert [module.training for module in net.modules()] == [False] * 5
    assert net.train().rest[0].training
    net.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    net.requires_grad_()
    net(ddp.tensor(np.ones((2, 3), np.float32))).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    net.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_childs_own_train_has_its_way() -> None:
    class Frozen(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> Frozen:
            return super().train(False)

    net = nn.Sequential(nn.Linear(3, 2), nn.Sequential(Frozen(2), nn.ReLU()))
    net.train()
    assert [module.training for module in net.modules()] == [True, True, True, False, True]
    before = net.state_dict()
    net(ddp.tensor(np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)))
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_parameters_and_buffers_have_the_byte_order_of_the_machine() -> None:
    foreign = np.arange(1, 4).astype(np.dtype(np.float32).newbyteorder())
    for kind in (nn.Parameter, nn.Buffer):
        value = kind(foreign)
        assert value.dtype.isnative and value.dtype == np.float32
        assert np.frombuffer(value.numpy().tobytes(), np.float32).tolist() == [1, 2, 3]
        native = np.zeros(3, np.float32)
        assert np.shares_memory(kind(native).numpy(), native)
    assert nn.Parameter(ddp.Tensor(foreign)).dtype.isnative


def test_text_is_that_of_pytorch() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.25))
            self.head = nn.Linear(4, 2, bias=False)

    assert repr(Small()) == (
        "Small(\n"
        "  (body): Sequential(\n"
        "    (0): Flatten(start_dim=1, end_dim=-1)\n"
        "    (1): Linear(in_features=3, out_features=4, bias=True)\n"
        "    (2): ReLU()\n"
        "    (3): Dropout(p=0.25)\n"
        "  )\n"
        "  (head): Linear(in_features=4, out_features=2, bias=False)\n"
        ")"
    )


def test_sequential_is_a_sequence() -> None:
    layers = nn.Sequential(nn.Identity(), nn.Tanh()).append(nn.Sigmoid())
    assert len(layers) == 3 and isinstance(layers[-1], nn.Sigmoid)
    assert [type(layer).__name__ for layer in layers] == ["Identity", "Tanh", "Sigmoid"]
    first = layers[:2]
    assert isinstance(first, nn.Sequential) and list(first) == [layers[0], layers[1]]
    x = ddp.tensor([[0.5]])
    assert layers(x).item() == pytest.approx(1 / (1 + np.exp(-np.tanh(0.5))))
    with pytest.raises(InputError, match="argument 1 is a function"):
        nn.Sequential(nn.ReLU(), lambda x: x)  # type: ignore[arg-type]


def test_a_module_without_forward_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Module defines no forward"):
        nn.Module()(1)


def test_shapes_that_do_not_fit_a_layer_are_named() -> None:
    with pytest.raises(ShapeError, match=r"linear got an input of \(2, 5\) float32 with a weight of \(4, 3\) float32"):
        nn.Linear(3, 4)(ddp.tensor(np.ones((2, 5), np.float32)))


def test_dropout_in_training_and_evaluation() -> None:
    x = ddp.tensor(np.ones((200, 50)), requires_grad=True)
    layer = nn.Dropout(0.25)
    with ddp.random_stream(0, 0, 0):
        y = layer(x)
    kept = y.numpy() != 0
    np.testing.assert_allclose(y.numpy()[kept], 1 / 0.75)
    # 10,000 draws: the deviation of their mean is 0.0043.
    assert kept.mean() == pytest.approx(0.75, abs=0.02)
    y.sum().backward()
    np.testing.assert_allclose(x.grad, y.numpy())
    with ddp.random_stream(0, 0, 0):
        np.testing.assert_array_equal(layer(x).numpy(), y.numpy())
        assert (layer(x).numpy() != y.numpy()).any()
    assert layer.eval()(x) is x
    assert not nn.Dropout(1.0)(x).numpy().any()
    with pytest.raises(InputError, match=r"p in \[0, 1\] and got 1.5"):
        nn.Dropout(1.5)


def test_a_deep_copied_net_is_independent() -> None:
    net = Net()
    twin = copy.deepcopy(net)
    assert twin.tied is twin.rest[1]
    with ddp.no_grad():
        twin.scale.zero_()
    assert net.scale.tolist() == [1.0] * 4


def test_activations_as_functions_and_modules_agree() -> None:
    x = ddp.tensor(np.linspace(-2, 2, 7))
    for module, function in [
        (nn.ReLU(), nn.functional.relu),
        (nn.Tanh(), nn.functional.tanh),
        (nn.Sigmoid(), nn.functional.sigmoid),
    ]:
        np.testing.assert_array_equal(module(x).numpy(), function(x).numpy())
    assert nn.functional.softmax(x, 0).sum().item() == pytest.approx(1)
    np.testing.assert_allclose(nn.functional.log_softmax(x, 0).exp().numpy(), nn.functional.softmax(x, 0).numpy())
