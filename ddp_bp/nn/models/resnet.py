"""Small residual networks for images (He et al., "Deep residual learning", 2016, and "Identity mappings", 2016).

Parameters have the names of torchvision's ResNet: conv1, bn1, layer1.0.conv1, ..., layer2.0.downsample.0, ..., fc.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from ddp_bp.engine.tensor import Tensor
from ddp_bp.nn import init
from ddp_bp.nn.containers import Sequential
from ddp_bp.nn.convolution import Conv2d
from ddp_bp.nn.layers import Dropout, Identity, Linear
from ddp_bp.nn.models.options import BATCH_NORMS, BatchNorm, Fraction, Shape, Size, checked, image_shape
from ddp_bp.nn.module import Module
from ddp_bp.nn.pooling import MaxPool2d

Norm = Callable[[int], Module]


@checked
def resnet(
    input_shape: Shape,
    num_outputs: Size,
    *,
    widths: Sequence[Size] = (32, 64, 128),
    blocks: Sequence[Size] = (1, 1, 1),
    block: Literal["classic", "preactivation"] = "classic",
    norm: BatchNorm = "batch",
    stem_pool: bool = False,
    dropout: Fraction = 0.0,
) -> Module:
    """A residual network from images (N, channels, height, width) to (N, num_outputs).

    A 3x3 convolution to widths[0] channels, halved by a pooling if `stem_pool`; for each stage i, blocks[i] blocks of
    two 3x3 convolutions to widths[i] channels, the first of every stage but the first at stride 2; the mean over all
    pixels, dropout, and a Linear. In a classic block batch norm and ReLU follow the convolutions, and ReLU the sum; in
    a preactivation block they precede them, and the last ones come before the mean. Batch norm is over the shard
    ("batch") or over the whole batch ("sync").

    Convolutions start normal as by He with fan_out. Raises InputError for an argument that cannot be used: `widths`
    and `blocks` must be equally long.
    """
    channels, _, _ = image_shape("resnet", input_shape)
    return ResNet(
        channels, num_outputs, widths, blocks, block == "preactivation", BATCH_NORMS[norm], stem_pool, dropout
    )


def _conflicts(options: dict[str, Any]) -> dict[str, str]:
    widths, blocks = list(options["widths"]), list(options["blocks"])
    if widths and len(widths) == len(blocks):
        return {}
    return {"blocks": f"expected one number for each of widths = {widths}, and at least one, got {blocks}"}


resnet.conflicts = _conflicts  # type: ignore[attr-defined]


class ResNet(Module):
    """What `resnet` builds; arguments are those of it."""

    def __init__(
        self,
        in_channels: int,
        num_outputs: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        is_preactivation: bool,
        norm: Norm,
        stem_pool: bool,
        dropout: float,
    ) -> None:
        make = PreactivationBlock if is_preactivation else ClassicBlock
        width = widths[0]
        self.conv1 = _conv3x3(in_channels, width)
        self.bn1 = norm(widths[-1] if is_preactivation else width)
        self.maxpool = MaxPool2d(2) if stem_pool else Identity()
        self._stages = []
        for number, (next_width, num_blocks) in enumerate(zip(widths, blocks, strict=True), start=1):
            stage = Sequential()
            for position in range(num_blocks):
                stage.append(make(width, next_width, 2 if number > 1 and position == 0 else 1, norm))
                width = next_width
            setattr(self, f"layer{number}", stage)
            self._stages.append(stage)
        self.dropout = Dropout(dropout)
        self.fc = Linear(width, num_outputs)
        self._is_preactivation = is_preactivation

    def forward(self, input: Tensor) -> Tensor:
        x = self.conv1(input)
        if not self._is_preactivation:
            x = self.bn1(x).relu()
        x = self.maxpool(x)
        for stage in self._stages:
            x = stage(x)
        if self._is_preactivation:
            x = self.bn1(x).relu()
        output: Tensor = self.fc(self.dropout(x.mean((2, 3))))
        return output


class ClassicBlock(Module):
    """(N, in, H, W) to (N, width, H / stride, W / stride): ReLU of two normed convolutions plus the input.

    Where the shapes differ, the input goes through a normed 1x1 convolution, `downsample`.
    """

    def __init__(self, in_channels: int, width: int, stride: int, norm: Norm) -> None:
        self.conv1 = _conv3x3(in_channels, width, stride)
        self.bn1 = norm(width)
        self.conv2 = _conv3x3(width, width)
        self.bn2 = norm(width)
        is_same = stride == 1 and in_channels == width
        self.downsample = None if is_same else Sequential(_conv1x1(in_channels, width, stride), norm(width))

    def forward(self, input: Tensor) -> Tensor:
        x = self.bn2(self.conv2(self.bn1(self.conv1(input)).relu()))
        total: Tensor = x + (input if self.downsample is None else self.downsample(input))
        return total.relu()


class PreactivationBlock(Module):
    """(N, in, H, W) to (N, width, H / stride, W / stride): two convolutions of normed ReLUs, plus the input.

    Where the shapes differ, the normed input goes through a 1x1 convolution, `downsample`.
    """

    def __init__(self, in_channels: int, width: int, stride: int, norm: Norm) -> None:
        self.bn1 = norm(in_channels)
        self.conv1 = _conv3x3(in_channels, width, stride)
        self.bn2 = norm(width)
        self.conv2 = _conv3x3(width, width)
        is_same = stride == 1 and in_channels == width
        self.downsample = None if is_same else _conv1x1(in_channels, width, stride)

    def forward(self, input: Tensor) -> Tensor:
        normed = self.bn1(input).relu()
        x = self.conv2(self.bn2(self.conv1(normed)).relu())
        total: Tensor = x + (input if self.downsample is None else self.downsample(normed))
        return total


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> Conv2d:
    return _started(Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False))


def _conv1x1(in_channels: int, out_channels: int, stride: int) -> Conv2d:
    return _started(Conv2d(in_channels, out_channels, 1, stride, bias=False))


def _started(convolution: Conv2d) -> Conv2d:
    init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution
