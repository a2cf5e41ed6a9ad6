"""Zeros around images."""

from __future__ import annotations

from typing import Any

from ddp_bp.engine.ops.layout import channels_first, channels_last
from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation, describe
from ddp_bp.engine.ops.windows import Padded, Window
from ddp_bp.errors import ShapeError


def _zero_pad2d(a: Array, padding: tuple[int, int, int, int]) -> tuple[Array, Any]:
    left, right, top, bottom = padding
    if a.ndim not in (3, 4) or a.shape[-1] + min(left, 0) + min(right, 0) < 0 or a.shape[-1] + left + right < 1:
        raise _refusal(a, padding)
    if a.shape[-2] + min(top, 0) + min(bottom, 0) < 0 or a.shape[-2] + top + bottom < 1:
        raise _refusal(a, padding)
    images = channels_last(a, 2)
    return channels_first(_padded(images, padding), 2, a.ndim), (padding, a.ndim)


def _zero_pad2d_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    (left, right, top, bottom), num_axes = saved
    # What was cut off gets zeros back, and what was added is cut off.
    return (channels_first(_padded(channels_last(gradient, 2), (-left, -right, -top, -bottom)), 2, num_axes),)


def _padded(images: Array, padding: tuple[int, int, int, int]) -> Array:
    left, right, top, bottom = padding
    window = Window((1, 1), (1, 1), (1, 1), ((top, bottom), (left, right)))
    everything = slice(0, len(images))
    return Padded(images, window, [everything])[everything]


def _refusal(a: Array, padding: tuple[int, int, int, int]) -> ShapeError:
    return ShapeError(
        f"zero_pad2d got {describe(a)} with padding {padding}; it takes images (N, C, H, W) or (C, H, W) and pixels to "
        "add (left, right, top, bottom), negative to cut off, that leave an image of one pixel or more"
    )


ZERO_PAD2D = Operation(
    "zero_pad2d", _zero_pad2d, _zero_pad2d_vjp, "images and (left, right, top, bottom)", is_view=True
)

OPERATIONS = (ZERO_PAD2D,)
