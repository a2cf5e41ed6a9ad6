"""Flat vectors as named arrays and back: how the state of optimizers and averages is saved. Knows no optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ddp_bp.engine.flat import FlatParameters
from ddp_bp.engine.ops.operation import Array
from ddp_bp.errors import InputError, ShapeError

Allocate = Callable[[str, int, np.dtype[Any]], Array]


def allocate_vector(allocate: Allocate | None, name: str, flat: FlatParameters) -> Array:
    """A zeroed vector beside `flat`, from `allocate` if it is given. Raises ShapeError if that gives another shape."""
    vector = (allocate or _zeros)(name, flat.size, flat.dtype)
    if vector.shape != (flat.size,) or vector.dtype != flat.dtype:
        raise ShapeError(
            f"state {name!r} was allocated as {vector.shape} {vector.dtype}; it takes ({flat.size},) {flat.dtype}"
        )
    return vector


def save(flat: FlatParameters, vectors: Mapping[str, Array], counter: str, count: int) -> dict[str, Array]:
    """Copies: "<parameter>.<vector>" in the parameter's shape, and `count` as int64 of shape () under `counter`."""
    result = {counter: np.array(count, np.int64)}
    for slot in flat.slots:
        for name, vector in vectors.items():
            part = vector[slot.offset : slot.offset + slot.size]
            result[f"{slot.name}.{name}"] = part.reshape(slot.shape).copy()
    return result


def restore(
    called: str, flat: FlatParameters, vectors: Mapping[str, Array], counter: str, state: Mapping[str, Any]
) -> int:
    """Copies what `save` gave into `vectors` and returns the count; InputError lists what does not fit."""
    expected = {counter: ()} | {f"{slot.name}.{name}": slot.shape for slot in flat.slots for name in vectors}
    problems = [f"missing: {name}" for name in expected if name not in state]
    problems += [f"unexpected: {name}" for name in state if name not in expected]
    problems += [
        f"{name}: expected shape {shape}, got {np.shape(state[name])}"
        for name, shape in expected.items()
        if name in state and np.shape(state[name]) != shape
    ]
    problems += [
        f"{name}: expected numbers, got {np.asarray(state[name]).dtype}"
        for name in expected
        if name in state and np.asarray(state[name]).dtype.kind not in "fiu"
    ]
    if problems:
        lines = "\n  ".join(problems)
        raise InputError(f"the state does not fit this {called}:\n  {lines}")
    for slot in flat.slots:
        for name, vector in vectors.items():
            part = vector[slot.offset : slot.offset + slot.size].reshape(slot.shape)
            np.copyto(part, np.asarray(state[f"{slot.name}.{name}"], vector.dtype))
    return int(state[counter])


def _zeros(name: str, size: int, dtype: np.dtype[Any]) -> Array:  # noqa: ARG001
    # The pages of np.zeros are mapped when they are first written to, so that a rank pays for its own slice only.
    return np.zeros(size, dtype)
