"""Picking elements by arrays of integers, and adding up what comes back for those that were picked more than once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ddp_bp.engine.ops.flops import no_flops
from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation


def scatter_add(shape: tuple[int, ...], positions: Array, values: Array) -> Array:
    """An array of `shape` with each of `values` added at its place in `positions`, counted in C order, and 0 elsewhere.

    `positions` are integers in [0, size), as many as `values`. Values for one place are added in their order.
    """
    output = np.zeros(math.prod(shape), values.dtype)
    # In one dimension `add.at` runs a loop in C that is several times quicker than its general one.
    np.add.at(output, positions.reshape(-1), np.ascontiguousarray(values).reshape(-1))
    return output.reshape(shape)


def may_repeat(index: tuple[Any, ...]) -> bool:
    """Whether `index` may name an element twice: only arrays of integers can."""
    return any(isinstance(entry, np.ndarray) and entry.dtype.kind != "b" and entry.ndim for entry in index)


def positions_of(shape: tuple[int, ...], index: tuple[Any, ...]) -> Array:
    """The places, counted in C order, of the elements that `index` picks from an array of `shape`."""
    return np.asarray(np.arange(math.prod(shape)).reshape(shape)[index])


def _gather(a: Array, index: Array, axis: int) -> tuple[Array, Any]:
    if index.dtype.kind not in "iu":
        raise TypeError("the index does not hold integers")
    if a.ndim != index.ndim:
        raise ValueError("the index has not as many axes as the array")
    shape, wanted = (a.shape, index.shape) if a.ndim else ((1,), (1,))
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis {axis} is out of range")
    axis %= len(shape)
    if any(wide > side for i, (wide, side) in enumerate(zip(wanted, shape, strict=True)) if i != axis):
        raise ValueError("the index is longer than the array along another axis")
    places = index.astype(np.intp).reshape(wanted)
    # Seen as unsigned, a negative number is large: one comparison checks both ends.
    if places.size and np.maximum.reduce(places.view(np.uintp), axis=None) >= shape[axis]:
        raise IndexError(f"the index holds numbers from {places.min()} to {places.max()}, not in [0, {shape[axis]})")
    places *= math.prod(shape[axis + 1 :])
    for i, side in enumerate(wanted):
        if i != axis:
            steps = np.arange(side) * math.prod(shape[i + 1 :])
            places += steps.reshape((-1,) + (1,) * (len(shape) - 1 - i))
    places = places.reshape(index.shape)
    return np.take(a, places), (a.shape, places)


def _gather_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    shape, places = saved
    return scatter_add(shape, places, gradient), None


GATHER = Operation(
    "gather",
    _gather,
    _gather_vjp,
    "an array, integers with as many axes, none longer than the array's but along the axis, where they count from 0, "
    "and that axis",
    flops=no_flops,
)

OPERATIONS = (GATHER,)
