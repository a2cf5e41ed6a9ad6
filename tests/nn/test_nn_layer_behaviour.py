"""What layers do beside their arithmetic: containers, state of batch norm, sharing, masks, dropout, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ddp_bp as ddp
from ddp_bp import nn
from ddp_bp.engine import FlatParameters
from ddp_bp.errors import DtypeError, GraphError, InputError, ShapeError


def numbers(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ---- containers


def test_module_list_and_dict_name_their_modules() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            self.blocks = nn.ModuleList([nn.Linear(2, 2)]).append(nn.ReLU()).extend([nn.Linear(2, 1)])
            self.heads = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False), "b": nn.Identity()})

    net = Net()
    assert list(net.state_dict()) == [
        "blocks.0.weight",
        "blocks.0.bias",
        "blocks.2.weight",
        "blocks.2.bias",
        "heads.a.weight",
    ]
    net.blocks[2] = net.blocks[0]
    assert len(list(net.parameters())) == 3 and len(net.blocks) == 3
    assert [type(module).__name__ for module in net.blocks] == ["Linear", "ReLU", "Linear"]
    assert list(net.heads) == list(net.heads.keys()) == ["a", "b"] and "a" in net.heads and len(net.heads) == 2
    assert [module for _, module in net.heads.items()] == list(net.heads.values())
    net.heads["c"] = nn.Tanh()
    del net.heads["b"]
    assert list(net.heads) == ["a", "c"]
    assert not net.eval().heads["c"].training
    with pytest.raises(InputError, match="ModuleList takes modules, and 3 is a int"):
        net.blocks.append(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="names without a dot"):
        net.heads["x.y"] = nn.Tanh()


def test_residual_adds_its_input_or_the_shortcut() -> None:
    x = ddp.tensor(numbers(4, 3), requires_grad=True)
    block = nn.Residual(nn.Linear(3, 3))
    np.testing.assert_allclose(block(x).numpy(), block.module(x).numpy() + x.numpy(), rtol=1e-6)
    narrow = nn.Residual(nn.Linear(3, 2), nn.Linear(3, 2, bias=False))
    assert list(narrow.state_dict()) == ["module.weight", "module.bias", "shortcut.weight"]
    narrow(x).sum().backward()
    assert x.grad is not None and all(parameter.grad is not None for parameter in narrow.parameters())
    with pytest.raises(ShapeError, match="give a shortcut"):
        nn.Residual(nn.Linear(3, 2))(x)
    with pytest.raises(ShapeError, match="give a shortcut"):
        nn.Residual(nn.Linear(3, 1))(x)


# ---- batch norm


def test_batch_norm_moves_its_statistics_in_training_only() -> None:
    layer = nn.BatchNorm2d(3)
    x = numbers(4, 3, 5, 5) * 3 + 1
    layer.eval()(ddp.tensor(x))
    assert layer.num_batches_tracked.item() == 0 and not layer.running_mean.numpy().any()
    layer.train()(ddp.tensor(x))
    assert layer.num_batches_tracked.item() == 1
    np.testing.assert_allclose(layer.running_mean.numpy(), 0.1 * x.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(layer.running_var.numpy(), 0.9 + 0.1 * x.var((0, 2, 3), ddof=1), rtol=1e-5)
    assert [name for name, _ in layer.named_buffers()] == ["running_mean", "running_var", "num_batches_tracked"]
    layer.reset_running_stats()
    assert layer.num_batches_tracked.item() == 0 and layer.running_var.tolist() == [1.0] * 3
    with pytest.raises(ShapeError, match=r"BatchNorm2d got an input of shape \(4, 3\); it takes \(N, C, H, W\)"):
        layer(ddp.tensor(numbers(4, 3)))
    with pytest.raises(ShapeError, match="1 value\\(s\\) per channel"):
        nn.BatchNorm1d(3)(ddp.tensor(numbers(1, 3)))


def test_a_batch_normalised_twice_goes_back_through_both() -> None:
    """The running statistics change in place between the two, which backward must not mind."""
    layer = nn.BatchNorm1d(3)
    x = ddp.tensor(numbers(5, 3), requires_grad=True)
    layer(layer(x)).sum().backward()
    assert x.grad is not None
    # In evaluation they are what the gradient is computed with.
    y = layer.eval()(x)
    layer.train()(x)
    with pytest.raises(GraphError, match="changed in place"):
        y.sum().backward()


# ---- sharing, unused parameters, switches


class Language(nn.Module):
    """Embedding and output layer share a weight; one layer is never called."""

    def __init__(self) -> None:
        self.tokens = nn.Embedding(11, 8)
        self.positions = nn.LearnedPositionalEncoding(6, 8)
        self.unused = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, numbers: np.ndarray) -> ddp.Tensor:
        return self.head(self.positions(self.tokens(numbers)))


def test_a_tied_weight_is_one_parameter_with_the_sum_of_its_gradients() -> None:
    net, indices = Language(), np.array([[1, 2, 2, 0]])
    assert [name for name, _ in net.named_parameters()] == [
        "tokens.weight",
        "positions.weight",
        "unused.weight",
        "unused.bias",
    ]
    free = copy.deepcopy(net)
    free.head.weight = nn.Parameter(net.tokens.weight.numpy().copy())
    for model in (net, free):
        flat = FlatParameters(model.named_parameters())
        buffer = np.full(flat.size, np.nan, np.float32)
        flat.bind_gradient(buffer)
        model(indices).sum().backward()
        # Unused parameters have the gradient 0, and nothing is left of what was in the buffer.
        assert np.isfinite(flat.finish_gradient()).all()
        assert not model.unused.weight.grad and model.unused.weight.grad is None
    np.testing.assert_allclose(net.tokens.weight.grad, free.tokens.weight.grad + free.head.weight.grad, rtol=1e-5)


def test_frozen_layers_get_no_gradient_and_pass_it_on() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3))
    net[1].requires_grad_(False)
    net[2].weight.requires_grad_(False)
    net(ddp.tensor(numbers(2, 1, 6, 6))).sum().backward()
    got = {name: parameter.grad is not None for name, parameter in net.named_parameters()}
    assert got == {
        "0.weight": True,
        "0.bias": True,
        "1.weight": False,
        "1.bias": False,
        "2.weight": False,
        "2.bias": True,
    }


# ---- masks, padding and positions


def test_padding_row_of_an_embedding_starts_at_0_and_stays() -> None:
    layer = nn.Embedding(4, 3, padding_idx=-1)
    assert layer.padding_idx == 3 and not layer.weight.numpy()[3].any() and layer.weight.numpy()[:3].all()
    layer(np.array([3, 1, 3, 1])).sum().backward()
    np.testing.assert_array_equal(layer.weight.grad, np.array([0, 2, 0, 0])[:, None] * np.ones(3))
    with pytest.raises(ShapeError, match=r"it takes row numbers in \[0, 4\)"):
        layer(np.array([4]))
    with pytest.raises(DtypeError, match="integer row numbers"):
        layer(np.array([1.0]))
    with pytest.raises(InputError, match="padding_idx 4"):
        nn.Embedding(4, 3, padding_idx=4)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masked_keys_have_no_influence(kind: str, need_weights: bool) -> None:
    layer = nn.MultiheadAttention(6, 2, batch_first=True, dtype=np.float64)
    x = numbers(3, 5, 6, dtype=np.float64)
    padding = np.arange(5) >= np.array([5, 3, 1])[:, None]
    later = np.triu(np.ones((5, 5), np.bool_), 1)
    as_given = (lambda mask: mask) if kind == "bool" else (lambda mask: np.where(mask, -np.inf, 0.0))
    options = {"key_padding_mask": as_given(padding), "attn_mask": as_given(later), "need_weights": need_weights}

    def run(given: np.ndarray, **more: Any) -> np.ndarray:
        tensor = ddp.tensor(given)
        output, weights = layer(tensor, tensor, tensor, **more)
        assert (weights is not None) == more["need_weights"]
        return np.array(output.numpy())

    expected = run(x, **options)
    # Query i looks at keys up to i that are no padding: changing the others leaves it as it is.
    changed = x.copy()
    changed[1, 4], changed[2, 1:] = 9, 9
    np.testing.assert_allclose(run(changed, **options)[1, :4], expected[1, :4], rtol=1e-12)
    np.testing.assert_allclose(run(changed, **options)[2, 0], expected[2, 0], rtol=1e-12)
    causal = run(x, is_causal=True, key_padding_mask=options["key_padding_mask"], need_weights=need_weights)
    np.testing.assert_allclose(causal, expected, rtol=1e-12)


def test_a_query_that_may_look_at_nothing_gets_zeros() -> None:
    q = ddp.tensor(numbers(2, 3, 4), requires_grad=True)
    mask = np.array([[True, False, True], [False, False, False], [True, True, True]])
    y = nn.functional.scaled_dot_product_attention(q, q, q, mask)
    assert not y.numpy()[:, 1].any() and y.numpy()[:, [0, 2]].all()
    y.sum().backward()
    assert np.isfinite(q.grad).all()


def test_dropout_of_attention_and_recurrence_is_drawn_from_the_stream() -> None:
    x = ddp.tensor(numbers(4, 3, 6))
    attention, lstm = nn.MultiheadAttention(6, 2, dropout=0.5), nn.LSTM(6, 5, num_layers=2, dropout=0.5)
    for run in (
        lambda: attention(x, x, x)[0],
        lambda: attention(x, x, x, need_weights=False)[0],
        lambda: lstm(x)[0],
    ):
        with ddp.random_stream(0, 1, 2):
            first, second = run().numpy(), run().numpy()
        with ddp.random_stream(0, 1, 2):
            again = run().numpy()
        np.testing.assert_array_equal(first, again)
        assert (first != second).any()
    np.testing.assert_array_equal(lstm.eval()(x)[0].numpy(), lstm(x)[0].numpy())
    np.testing.assert_array_equal(attention.eval()(x, x, x)[0].numpy(), attention(x, x, x)[0].numpy())


def test_positions_are_told_apart() -> None:
    encoding = nn.SinusoidalPositionalEncoding(50, 6)
    added = encoding(ddp.tensor(np.zeros((2, 7, 6)))).numpy()
    for position, element in [(0, 0), (3, 2), (6, 5)]:
        wave = np.sin if element % 2 == 0 else np.cos
        assert added[1, position, element] == pytest.approx(wave(position / 10000 ** (element // 2 * 2 / 6)))
    assert not encoding.state_dict() and encoding(ddp.tensor(numbers(7, 6))).dtype == np.float32
    with pytest.raises(ShapeError, match="with L up to 50"):
        encoding(ddp.tensor(np.zeros((51, 6))))
    learned = nn.LearnedPositionalEncoding(5, 3)
    learned(ddp.tensor(np.zeros((2, 3, 3), np.float32))).sum().backward()
    np.testing.assert_array_equal(learned.weight.grad, np.array([2, 2, 2, 0, 0])[:, None] * np.ones(3))


# ---- arguments that no layer can use


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Conv2d(3, 4, 3, groups=2),
        lambda: nn.Conv2d(3, 4, 0),
        lambda: nn.Conv2d(3, 4, (3, 3, 3)),
        lambda: nn.Conv2d(3, 4, 3, stride=2, padding="same"),
        lambda: nn.Conv2d(3, 4, 3, padding="full"),
        lambda: nn.BatchNorm1d(0),
        lambda: nn.LayerNorm(()),
        lambda: nn.GroupNorm(2, 3),
        lambda: nn.Embedding(0, 3),
        lambda: nn.Bilinear(0, 1, 1),
        lambda: nn.MultiheadAttention(5, 2),
        lambda: nn.MultiheadAttention(4, 2, dropout=2.0),
        lambda: nn.LSTM(0, 3),
        lambda: nn.GRU(3, 3, dropout=-1.0),
        lambda: nn.RNN(3, 3, nonlinearity="sin"),
        lambda: nn.GELU("fast"),
        lambda: nn.Softplus(beta=0.0),
        lambda: nn.LearnedPositionalEncoding(0, 3),
        lambda: nn.SinusoidalPositionalEncoding(3, 0),
        lambda: nn.ZeroPad2d((1, 2)),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(InputError):
        build()


@pytest.mark.parametrize(
    ("module", "shapes"),
    [
        (nn.LSTM(3, 4), [(5, 2, 4)]),
        (nn.LSTM(3, 4), [(0, 2, 3)]),
        (nn.Unflatten(1, (2, 2)), [(2, 6)]),
        (nn.Unflatten(2, (2, 3)), [(2, 6)]),
        (nn.MultiheadAttention(4, 2), [(3, 4), (3, 1, 4), (3, 1, 4)]),
        (nn.LayerNorm(4), [(2, 3)]),
        (nn.Conv2d(3, 4, 3), [(2, 3, 2, 2)]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(module: nn.Module, shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ShapeError):
        module(*(ddp.tensor(numbers(*shape)) for shape in shapes))
