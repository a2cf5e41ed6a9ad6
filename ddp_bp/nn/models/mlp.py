"""The multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from ddp_bp.nn.activation import ReLU, Sigmoid, Tanh
from ddp_bp.nn.containers import Sequential
from ddp_bp.nn.layers import Dropout, Flatten, Linear
from ddp_bp.nn.models.options import Fraction, Shape, Size, checked
from ddp_bp.nn.module import Module

Activation = Literal["relu", "sigmoid", "tanh"]
_ACTIVATIONS: Mapping[str, type[Module]] = MappingProxyType({"relu": ReLU, "sigmoid": Sigmoid, "tanh": Tanh})


@checked
def mlp(
    input_shape: Shape,
    num_outputs: Size,
    *,
    hidden: Sequence[Size] = (64,),
    activation: Activation = "relu",
    dropout: Fraction = 0.0,
) -> Sequential:
    """A multilayer perceptron from inputs (N, *input_shape) to (N, num_outputs).

    Layers: Flatten if `input_shape` has several axes; for each width in `hidden` Linear, the activation, and Dropout if
    `dropout` is above 0; a last Linear. Raises InputError for an argument that cannot be used.
    """
    layers: list[Module] = [Flatten()] if len(input_shape) > 1 else []
    width = math.prod(input_shape)
    for next_width in hidden:
        layers += [Linear(width, next_width), _ACTIVATIONS[activation]()]
        if dropout:
            layers.append(Dropout(dropout))
        width = next_width
    return Sequential(*layers, Linear(width, num_outputs))
