"""Each module draws from a stream of its own: what one draws does not depend on the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import ddp_bp as ddp
from ddp_bp import nn
from ddp_bp.nn.profiling import profiled
from ddp_bp.nn.streams import key_streams

X = ddp.tensor(np.ones((5, 4, 6), np.float32))


GOLDEN = {"": 13020603013274838756, "0": 8493733112532773764, "1": 8518482412311870710, "1.0": 4786086276877044158}
DRAWN = [0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 4.0, 4.0, 0.0, 0.0, 0.0, 0.0]


class Net(nn.Module):
    """Every kind of module that draws, and perhaps one more in front, which draws twice."""

    def __init__(self, has_more: bool) -> None:
        ddp.manual_seed(0)
        self.dropout = nn.Dropout(0.5)
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.5)
        self.recurrent = nn.GRU(6, 6, num_layers=3, dropout=0.5)
        self.inner = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))
        if has_more:
            self.more = nn.Dropout(0.5)

    def forward(self, x: ddp.Tensor) -> list[ddp.Tensor]:
        if hasattr(self, "more"):
            self.more(self.more(x))
        return [
            self.dropout(x),
            self.attention(x, x, x)[0],
            self.attention(x, x, x, need_weights=False)[0],
            self.attention(x, x + 1, x, need_weights=False)[0],
            self.recurrent(x)[0],
            self.inner[0](x),
            self.inner[1](x),
        ]


def drawn(net: nn.Module, step: int = 1) -> list[list[float]]:
    with ddp.random_stream(0, step, 2):
        return [y.numpy().ravel().tolist() for y in net(X)]


def test_a_module_more_does_not_change_what_the_others_draw() -> None:
    plain, more = Net(False), Net(True)
    key_streams(plain)
    key_streams(more)
    assert drawn(plain) == drawn(more) == drawn(plain)
    assert drawn(plain) != drawn(plain, step=2)


def test_without_keys_draws_are_numbered_as_they_come() -> None:
    assert drawn(Net(False)) != drawn(Net(True))
    one, other = nn.Dropout(0.5), nn.Dropout(0.5)
    with ddp.random_stream(0, 1, 2):
        first, second = one(X).numpy(), other(X).numpy()
    with ddp.random_stream(0, 1, 2):
        np.testing.assert_array_equal(other(X).numpy(), first)
        np.testing.assert_array_equal(one(X).numpy(), second)


def test_modules_and_their_calls_draw_differently() -> None:
    net = Net(False)
    key_streams(net)
    with ddp.random_stream(0, 1, 2):
        results = [module(X).numpy().tobytes() for module in (net.dropout, net.inner[0], net.inner[1]) * 2]
    assert len(set(results)) == 6


def test_the_keys_are_those_of_today() -> None:
    # A change here changes every training run that is resumed.
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    key_streams(net)
    assert {path: module.stream_key for path, module in net.named_modules()} == GOLDEN
    with ddp.random_stream(1, 2, 3):
        assert net(X).numpy().ravel()[:12].tolist() == DRAWN


def test_a_module_in_two_places_has_the_key_of_the_first() -> None:
    shared = nn.Dropout()
    key_streams(nn.Sequential(shared, nn.Sequential(shared)))
    assert shared.stream_key == GOLDEN["0"]


def test_keys_are_no_state_and_profiling_draws_the_same() -> None:
    net = Net(False)
    state = net.state_dict()
    key_streams(net)
    assert list(net.state_dict()) == list(state)
    expected = drawn(net)
    with profiled(net):
        assert drawn(net) == expected


@pytest.mark.parametrize(
    "function",
    [
        lambda key: nn.functional.dropout(X, 0.5, stream_key=key),
        lambda key: nn.functional.scaled_dot_product_attention(X, X, X, dropout_p=0.5, stream_key=key),
    ],
)
def test_functions_take_a_key(function: Callable[[int], ddp.Tensor]) -> None:
    with ddp.random_stream(0, 1, 2):
        expected = function(3).numpy()
    with ddp.random_stream(0, 1, 2):
        other = function(4).numpy()
        np.testing.assert_array_equal(function(3).numpy(), expected)
    assert (other != expected).any()
