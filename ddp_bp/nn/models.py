"""The models that a recipe can name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from ddp_bp.errors import InputError
from ddp_bp.nn.activation import ReLU, Sigmoid, Tanh
from ddp_bp.nn.containers import Sequential
from ddp_bp.nn.layers import Dropout, Flatten, Linear
from ddp_bp.nn.module import Module

_ACTIVATIONS: Mapping[str, type[Module]] = MappingProxyType({"relu": ReLU, "sigmoid": Sigmoid, "tanh": Tanh})


def mlp(
    input_shape: tuple[int, ...],
    num_outputs: int,
    *,
    hidden: Sequence[int] = (64,),
    activation: str = "relu",
    dropout: float = 0.0,
) -> Sequential:
    """A multilayer perceptron from inputs (N, *input_shape) to (N, num_outputs).

    Layers: Flatten if `input_shape` has several axes; for each width in `hidden` Linear, the activation, and Dropout if
    `dropout` is above 0; a last Linear. Raises InputError for an argument that cannot be used.
    """
    if not input_shape or any(size < 1 for size in input_shape):
        raise InputError(f"mlp takes an input_shape of positive sizes and got {tuple(input_shape)}")
    if num_outputs < 1:
        raise InputError(f"mlp takes a num_outputs of at least 1 and got {num_outputs}")
    if any(width < 1 for width in hidden):
        raise InputError(f"mlp takes hidden widths of at least 1 and got {list(hidden)}")
    if not 0.0 <= dropout < 1.0:
        raise InputError(f"mlp takes a dropout in [0, 1) and got {dropout}")
    if activation not in _ACTIVATIONS:
        nearest = difflib.get_close_matches(activation, _ACTIVATIONS, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise InputError(f"mlp takes an activation among {', '.join(_ACTIVATIONS)} and got {activation!r}{hint}")
    layers: list[Module] = [Flatten()] if len(input_shape) > 1 else []
    width = math.prod(input_shape)
    for next_width in hidden:
        layers += [Linear(width, next_width), _ACTIVATIONS[activation]()]
        if dropout:
            layers.append(Dropout(dropout))
        width = next_width
    return Sequential(*layers, Linear(width, num_outputs))


MODELS: Mapping[str, Callable[..., Module]] = MappingProxyType({"mlp": mlp})
