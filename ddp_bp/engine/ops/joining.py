"""Stacking arrays along a new axis, and padding them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation


def _stack(*arrays_and_axis: Any) -> tuple[Array, Any]:
    *arrays, axis = arrays_and_axis
    output = np.stack(arrays, axis=axis)
    return output, axis % output.ndim


def _stack_vjp(gradient: Array, axis: int, needs: Needs) -> Gradients:
    before: tuple[Any, ...] = (slice(None),) * axis
    return tuple(gradient[(*before, k, ...)] if need else None for k, need in enumerate(needs))


def _pad(a: Array, widths: tuple[tuple[int, int], ...], value: float) -> tuple[Array, Any]:
    if len(widths) != a.ndim:
        raise ValueError("there is not one pair of widths per axis")
    shape = tuple(before + side + after for side, (before, after) in zip(a.shape, widths, strict=True))
    if any(side < 0 for side in shape):
        raise ValueError("negative widths cut away more than there is")
    # Where the input lies in the output, and which part of it: a negative width cuts.
    inner = tuple(
        slice(max(before, 0), side - max(after, 0)) for side, (before, after) in zip(shape, widths, strict=True)
    )
    kept = tuple(
        slice(max(-before, 0), side - max(-after, 0)) for side, (before, after) in zip(a.shape, widths, strict=True)
    )
    output = np.full(shape, value, a.dtype) if value else np.zeros(shape, a.dtype)
    output[inner] = a[kept]
    return output, (a.shape, inner, kept)


def _pad_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    shape, inner, kept = saved
    part = gradient[inner]
    if part.shape == shape:
        return (part,)
    result = np.zeros(shape, gradient.dtype)
    result[kept] = part
    return (result,)


STACK = Operation("stack", _stack, _stack_vjp, "one or more arrays of one shape and an axis in [-ndim - 1, ndim]")
PAD = Operation("pad", _pad, _pad_vjp, "one array, a pair of widths (before, after) for each of its axes, and a number")

OPERATIONS = (STACK, PAD)
