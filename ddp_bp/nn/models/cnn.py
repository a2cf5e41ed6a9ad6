"""Plain convolutional networks for images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ddp_bp.errors import InputError
from ddp_bp.nn.activation import ReLU
from ddp_bp.nn.containers import Sequential
from ddp_bp.nn.convolution import Conv2d
from ddp_bp.nn.layers import Dropout, Flatten, Linear
from ddp_bp.nn.models.options import BATCH_NORMS, Fraction, Shape, Size, checked, image_shape
from ddp_bp.nn.module import Module
from ddp_bp.nn.pooling import AvgPool2d, MaxPool2d


@checked
def cnn(
    input_shape: Shape,
    num_outputs: Size,
    *,
    channels: Sequence[Size] = (32, 64),
    kernel_size: Size = 3,
    norm: Literal["none", "batch", "sync"] = "none",
    pool: Literal["max", "average", "none"] = "max",
    pool_every: Size = 1,
    hidden: Sequence[Size] = (128,),
    dropout: Fraction = 0.0,
) -> Sequential:
    """A convolutional network from images (N, channels, height, width) to (N, num_outputs).

    Layers: for each of `channels` a convolution that keeps height and width, batch norm if asked for, and ReLU; after
    every `pool_every` of them a pooling that halves height and width. Then Flatten; for each width in `hidden` Linear
    and ReLU; a last Linear. `dropout`, if above 0, comes before each Linear. A convolution followed by batch norm,
    which is over the shard ("batch") or over the whole batch ("sync"), has no bias. All starts as in PyTorch.

    Raises InputError for an argument that cannot be used: `kernel_size` must be odd, and images must be large enough
    for every pooling.
    """
    width, *size = image_shape("cnn", input_shape)
    layers: list[Module] = []
    for number, next_width in enumerate(channels, start=1):
        layers.append(Conv2d(width, next_width, kernel_size, padding=kernel_size // 2, bias=norm == "none"))
        if norm != "none":
            layers.append(BATCH_NORMS[norm](next_width))
        layers.append(ReLU())
        width = next_width
        if pool != "none" and number % pool_every == 0:
            if min(size) < 2:
                raise InputError(
                    f"cnn cannot pool images of {input_shape[1]} x {input_shape[2]} after convolution {number}, where "
                    f"{size[0]} x {size[1]} is left of them: take fewer channels, or a larger pool_every"
                )
            layers.append(MaxPool2d(2) if pool == "max" else AvgPool2d(2))
            size = [length // 2 for length in size]
    layers.append(Flatten())
    width *= size[0] * size[1]
    for next_width in (*hidden, num_outputs):
        if dropout:
            layers.append(Dropout(dropout))
        layers += [Linear(width, next_width), ReLU()]
        width = next_width
    return Sequential(*layers[:-1])


def _conflicts(options: dict[str, Any]) -> dict[str, str]:
    size = options["kernel_size"]
    return {} if size % 2 else {"kernel_size": f"expected an odd number, so that images keep their size, got {size}"}


cnn.conflicts = _conflicts  # type: ignore[attr-defined]
