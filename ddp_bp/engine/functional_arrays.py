"""Functions of several tensors that are no method of Tensor: joining, splitting, padding, Einstein summation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddp_bp.engine.misuse import explained
from ddp_bp.engine.ops import einsum as einstein
from ddp_bp.engine.ops import joining, shaping
from ddp_bp.engine.ops.operation import Array
from ddp_bp.engine.tensor import Tensor, apply
from ddp_bp.errors import InputError, ShapeError

PAD_MODES = ("constant", "reflect", "replicate", "circular")


@explained
def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Joins tensors that are alike in all axes but `dim`."""
    if not tensors:
        raise ShapeError("cat got no tensors; it takes one or more")
    return apply(shaping.CONCATENATE, tuple(tensors), (dim,))


@explained
def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Joins tensors of one shape along a new axis."""
    if not tensors:
        raise ShapeError("stack got no tensors; it takes one or more")
    return apply(joining.STACK, tuple(tensors), (dim,))


@explained
def broadcast_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, all expanded to the shape that they broadcast to."""
    try:
        shape = np.broadcast_shapes(*(tensor.shape for tensor in tensors))
    except ValueError as error:
        shapes = ", ".join(str(tensor.shape) for tensor in tensors)
        raise ShapeError(f"broadcast_tensors got shapes {shapes}; it takes shapes that broadcast together") from error
    return tuple(tensor.expand(shape) for tensor in tensors)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Sums of products over the axes that `equation` names, as in torch.einsum: "bik,bkj->bij" is a batched product.

    A term may repeat a letter (a diagonal) and hold one ellipsis. Without "->", the output has the axes that occur once
    in alphabetical order. Operands are contracted from left to right.
    """
    if not operands:
        raise ShapeError(f"einsum got no operands for {equation!r}; it takes one for each term")
    return apply(einstein.EINSUM, operands, (equation,))


@explained
def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Widens the last axes: `pad` holds (before, after) for the last axis, then for the one before it, and so on.

    `mode` is "constant" (with `value` or 0; negative widths cut), "reflect" (mirrored without the edge), "replicate"
    (the edge, repeated) or "circular". Raises ShapeError if there is not enough to mirror or to wrap.
    """
    if mode not in PAD_MODES:
        raise InputError(f"pad takes a mode among {', '.join(PAD_MODES)} and got {mode!r}")
    if value and mode != "constant":
        raise InputError(f"pad takes a value for the mode 'constant' only and got {value} for {mode!r}")
    if len(pad) % 2 or len(pad) > 2 * input.ndim:
        raise ShapeError(f"pad got {len(pad)} widths for shape {input.shape}; it takes two for each of its last axes")
    pairs = [(pad[2 * k], pad[2 * k + 1]) for k in range(len(pad) // 2)]
    if mode == "constant":
        widths = ((0, 0),) * (input.ndim - len(pairs)) + tuple(reversed(pairs))
        return apply(joining.PAD, (input,), (widths, value or 0))
    for k, (before, after) in enumerate(pairs, 1):
        if before or after:
            places = _places(input.shape[-k], before, after, mode)
            leading = (slice(None),) * (input.ndim - k)
            input = apply(shaping.GETITEM, (input,), ((*leading, places, ...),))
    return input


def _places(side: int, before: int, after: int, mode: str) -> Array:
    """Which elements of an axis of length `side` stand where, after padding it."""
    longest = {"reflect": side - 1, "replicate": max(before, after) if side else 0, "circular": side}[mode]
    if min(before, after) < 0 or max(before, after) > longest:
        raise ShapeError(
            f"pad got widths {before} and {after} for an axis of length {side}; for {mode!r} it takes [0, {longest}]"
        )
    places = np.arange(-before, side + after)
    if mode == "replicate":
        return np.clip(places, 0, side - 1)
    if mode == "circular":
        return places % side
    return np.asarray(side - 1 - np.abs(side - 1 - np.abs(places)))


@explained
def split(tensor: Tensor, split_size_or_sections: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Views of the tensor's parts along `dim`, of one size (the last may be smaller) or of the sizes given."""
    return tensor.split(split_size_or_sections, dim)


__all__ = ["broadcast_tensors", "cat", "einsum", "pad", "split", "stack"]
