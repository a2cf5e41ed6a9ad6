"""Initialisers and the models that a recipe can name."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

import ddp_bp as ddp
from ddp_bp import nn
from ddp_bp.errors import InputError, ShapeError
from ddp_bp.nn import init
from ddp_bp.nn.models import MODELS, mlp


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(np.full(shape, np.nan, np.float32))


@pytest.mark.parametrize(
    ("fill", "std", "bound"),
    [
        (lambda w: init.uniform_(w, -2, 4), 6 / math.sqrt(12), None),
        (lambda w: init.normal_(w, 1, 3), 3, None),
        (init.kaiming_uniform_, math.sqrt(2 / 200), math.sqrt(6 / 200)),
        (lambda w: init.kaiming_uniform_(w, a=math.sqrt(5)), 1 / math.sqrt(600), 1 / math.sqrt(200)),
        (lambda w: init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"), math.sqrt(2 / 300), None),
        (init.xavier_uniform_, math.sqrt(2 / 500), math.sqrt(6 / 500)),
        (lambda w: init.xavier_normal_(w, gain=2.0), 2 * math.sqrt(2 / 500), None),
    ],
)
def test_scales(fill: Callable[[nn.Parameter], nn.Parameter], std: float, bound: float | None) -> None:
    weight = parameter(300, 200)
    ddp.manual_seed(0)
    assert fill(weight) is weight
    values = weight.numpy()
    # 60,000 draws: the deviation of their spread is below 0.3 %.
    assert values.std() == pytest.approx(std, rel=0.02)
    if bound is not None:
        assert 0.99 * bound < np.abs(values).max() <= bound * 1.000001


def test_constants_and_fans_of_windows() -> None:
    assert init.zeros_(parameter(2)).tolist() == [0.0, 0.0]
    assert init.ones_(parameter(2)).tolist() == [1.0, 1.0]
    assert init.constant_(parameter(2), 0.5).tolist() == [0.5, 0.5]
    window = init.kaiming_uniform_(parameter(64, 8, 3, 3), nonlinearity="linear").numpy()
    assert np.abs(window).max() == pytest.approx(math.sqrt(3 / 72), rel=0.01)
    with pytest.raises(ShapeError, match="two axes or more"):
        init.xavier_uniform_(parameter(3))
    with pytest.raises(InputError, match="fan_avg"):
        init.kaiming_normal_(parameter(2, 2), mode="fan_avg")


def test_gains_are_those_of_pytorch() -> None:
    assert init.calculate_gain("tanh") == 5 / 3
    assert init.calculate_gain("relu") == math.sqrt(2)
    assert init.calculate_gain("leaky_relu", 0.2) == pytest.approx(math.sqrt(2 / 1.04))
    assert init.calculate_gain("leaky_relu") == pytest.approx(math.sqrt(2 / 1.0001))
    with pytest.raises(InputError, match="did you mean 'relu'"):
        init.calculate_gain("relo")


def test_a_seed_gives_one_model() -> None:
    states = []
    for seed in (1, 1, 2):
        ddp.manual_seed(seed)
        states.append(mlp((8,), 3).state_dict())
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
    assert not np.array_equal(states[0]["0.weight"], states[2]["0.weight"])


def test_mlp_has_the_layers_of_the_obvious_sequential() -> None:
    model = mlp((8, 8), 10, hidden=[32, 16], activation="tanh", dropout=0.1)
    assert [type(layer).__name__ for layer in model] == [
        *("Flatten", "Linear", "Tanh", "Dropout", "Linear", "Tanh", "Dropout", "Linear")
    ]
    assert list(model.state_dict()) == ["1.weight", "1.bias", "4.weight", "4.bias", "7.weight", "7.bias"]
    assert model(ddp.tensor(np.ones((5, 8, 8), np.float32))).shape == (5, 10)
    assert list(mlp((4,), 2).state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert list(mlp((4,), 2, hidden=[]).state_dict()) == ["0.weight", "0.bias"]
    assert MODELS["mlp"] is mlp
    with pytest.raises(TypeError):
        MODELS["other"] = mlp  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((), 2), {}, "input_shape"),
        (((0,), 2), {}, "input_shape"),
        (((4,), 0), {}, "num_outputs"),
        (((4,), 2), {"hidden": [4, 0]}, "hidden"),
        (((4,), 2), {"dropout": 1.0}, "dropout"),
        (((4,), 2), {"activation": "rellu"}, "did you mean 'relu'"),
    ],
)
def test_mlp_refuses(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mlp(*arguments, **options)
