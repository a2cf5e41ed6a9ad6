"""Model factories that recipes of the tests name, good and bad."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from msgspec import Meta

from ddp_bp import nn

if TYPE_CHECKING:
    from somewhere import Width


def build(input_shape: tuple[int, ...], num_outputs: int, *, width: int = 4, deep: bool = False) -> nn.Module:
    middle = [nn.Linear(width, width)] if deep else []
    return nn.Sequential(nn.Linear(input_shape[0], width), nn.Tanh(), *middle, nn.Linear(width, num_outputs))


class Network(nn.Module):
    """A class is a factory too."""

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int, width: int) -> None:
        self.layers = build(input_shape, num_outputs, width=width)

    def forward(self, x):
        return self.layers(x)


partial = functools.partial(build, width=3)


def unknown_annotation(input_shape, num_outputs, width: Width = 2) -> nn.Module:
    return build(input_shape, num_outputs, width=width)


def strange_annotation(input_shape, num_outputs, width: int | np.integer = 2) -> nn.Module:
    return build(input_shape, num_outputs, width=width)


def limited(
    input_shape,
    num_outputs,
    *,
    kind: Literal["narrow", "wide"] = "narrow",
    share: Annotated[float, Meta(ge=0, lt=1)] | None = None,
    widths: tuple[Annotated[int, Meta(ge=1)], ...] = (),
) -> nn.Module:
    return build(input_shape, num_outputs, width=8 if kind == "wide" else 2)


def anything(input_shape, num_outputs, **options: object) -> nn.Module:
    return build(input_shape, num_outputs, width=len(options) + 1)


def raising(input_shape, num_outputs) -> nn.Module:
    raise LookupError("no such layer")


def empty(input_shape, num_outputs) -> nn.Module:
    return nn.ReLU()


def text(input_shape, num_outputs) -> str:
    return "a model"


def too_few(input_shape, num_outputs) -> nn.Module:
    return build(input_shape, num_outputs - 1)


def too_many(input_shape, num_outputs) -> nn.Module:
    return build(input_shape, num_outputs + 1)


def flat(input_shape, num_outputs) -> nn.Module:
    class Flat(Network):
        def forward(self, x):
            return self.layers(x).sum(1)

    return Flat(input_shape, num_outputs, 2)


def other_input(input_shape, num_outputs) -> nn.Module:
    return build((input_shape[0] + 1,), num_outputs)


NUMBER = 3
