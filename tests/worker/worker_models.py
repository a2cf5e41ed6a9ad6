"""Model factories that recipes of the tests name, good and bad."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
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


@dataclass
class Layer:
    width: int = 1
    inner: list[Layer] = field(default_factory=list)


class Kind(enum.Enum):
    NARROW = "narrow"
    WIDE = "wide"


def typed(
    input_shape,
    num_outputs,
    *,
    path: Path = Path(),
    array: np.ndarray | None = None,
    number: np.float32 | None = None,
    imaginary: complex = 0j,
    function: Callable[[int], int] = int,
    module: type[nn.Module] = nn.ReLU,
    layer: Layer | None = None,
    kind: Kind | None = None,
    kinds: list[Kind] | None = None,
    by_kind: dict[Kind, int] | None = None,
) -> nn.Module:
    assert isinstance(path, Path)
    return build(input_shape, num_outputs, width=7 if kind is Kind.WIDE else 2)


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


def misshapen(input_shape, num_outputs) -> nn.Module:
    class Misshapen(Network):
        def forward(self, x):
            return self.layers(x).reshape(-1, 7)

    return Misshapen(input_shape, num_outputs, 2)


def too_wide(input_shape, num_outputs) -> nn.Module:
    return nn.Linear(-1, num_outputs)


def other_input(input_shape, num_outputs) -> nn.Module:
    return build((input_shape[0] + 1,), num_outputs)


class Changed(Network):
    """Gives what `change` makes of its output."""

    def __init__(self, input_shape, num_outputs, change) -> None:
        super().__init__(input_shape, num_outputs, 2)
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x))


def no_tensor(input_shape, num_outputs) -> nn.Module:
    return Changed(input_shape, num_outputs, lambda output: output.numpy())


def integers(input_shape, num_outputs) -> nn.Module:
    return Changed(input_shape, num_outputs, lambda output: output.to(np.int64))


def detached(input_shape, num_outputs) -> nn.Module:
    return Changed(input_shape, num_outputs, lambda output: output.detach())


def frozen(input_shape, num_outputs) -> nn.Module:
    return build(input_shape, num_outputs).requires_grad_(False)


def partly_frozen(input_shape, num_outputs) -> nn.Module:
    model = build(input_shape, num_outputs)
    model[0].requires_grad_(False)
    return model


def normalized(input_shape, num_outputs, *, synced: bool = False, tracks: bool = True) -> nn.Module:
    kind = nn.SyncBatchNorm if synced else nn.BatchNorm1d
    norm = kind(input_shape[0], track_running_stats=tracks)
    return nn.Sequential(norm, nn.Dropout(0.5), nn.Linear(input_shape[0], num_outputs))


class CrashingInTraining(Network):
    def forward(self, x):
        if self.training:
            raise SystemExit(3)
        return super().forward(x)


def crashing(input_shape, num_outputs) -> nn.Module:
    return CrashingInTraining(input_shape, num_outputs, 2)


NUMBER = 3
