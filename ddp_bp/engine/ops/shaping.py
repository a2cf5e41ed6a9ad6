"""The same elements in another arrangement: reshape, permute, broadcast, index, join."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddp_bp.engine.ops.flops import no_flops
from ddp_bp.engine.ops.indexing import may_repeat, positions_of, scatter_add
from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation, unbroadcast


def _reshape(a: Array, shape: tuple[int, ...]) -> tuple[Array, Any]:
    return a.reshape(shape), a.shape


def _reshape_vjp(gradient: Array, shape: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    return (gradient.reshape(shape),)


def _permute(a: Array, axes: tuple[int, ...]) -> tuple[Array, Any]:
    return a.transpose(axes), axes


def _permute_vjp(gradient: Array, axes: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    return (gradient.transpose(np.argsort([axis % len(axes) for axis in axes])) if axes else gradient,)


def _expand(a: Array, shape: tuple[int, ...]) -> tuple[Array, Any]:
    return np.broadcast_to(a, shape), a.shape


def _expand_vjp(gradient: Array, shape: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    return (unbroadcast(gradient, shape),)


def _getitem(a: Array, index: tuple[Any, ...]) -> tuple[Array, Any]:
    return a[index], (a.shape, index)


def _getitem_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    shape, index = saved
    if may_repeat(index):
        return (scatter_add(shape, positions_of(shape, index), gradient),)
    output = np.zeros(shape, gradient.dtype)
    output[index] = gradient
    return (output,)


def _setitem(a: Array, value: Array, index: tuple[Any, ...]) -> tuple[Array, Any]:
    output = a.copy()
    output[index] = value
    return output, (index, value.shape)


def _setitem_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    index, value_shape = saved
    grad_a = grad_value = None
    if needs[0]:
        grad_a = gradient.copy()
        grad_a[index] = 0
    if needs[1]:
        place = np.asarray(gradient[index])
        # A value may have more axes than the place it goes to, of length 1.
        shape = value_shape[max(len(value_shape) - place.ndim, 0) :]
        grad_value = unbroadcast(place, shape).reshape(value_shape)
    return grad_a, grad_value


def _concatenate(*arrays_and_axis: Any) -> tuple[Array, Any]:
    *arrays, axis = arrays_and_axis
    output = np.concatenate(arrays, axis=axis)
    return output, (axis, np.cumsum([array.shape[axis] for array in arrays])[:-1])


def _concatenate_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    axis, boundaries = saved
    parts = np.split(gradient, boundaries, axis=axis)
    return tuple(part if need else None for part, need in zip(parts, needs, strict=True))


def _clone(a: Array) -> tuple[Array, Any]:
    return a.copy(), None


def _clone_vjp(gradient: Array, saved: None, needs: Needs) -> Gradients:  # noqa: ARG001
    return (gradient,)


RESHAPE = Operation(
    "reshape", _reshape, _reshape_vjp, "one array and a shape with as many elements, one size -1", is_view=True
)
PERMUTE = Operation("permute", _permute, _permute_vjp, "one array and each of its axes once", is_view=True)
EXPAND = Operation("expand", _expand, _expand_vjp, "one array and a shape that it broadcasts to", is_view=True)
GETITEM = Operation(
    "getitem",
    _getitem,
    _getitem_vjp,
    "one array and, within its shape, integers, slices, None, ..., integer or boolean arrays",
    is_view=True,
)
SETITEM = Operation(
    "setitem",
    _setitem,
    _setitem_vjp,
    "an array, a value that broadcasts to the place it goes to, and an index",
    flops=no_flops,
)
CONCATENATE = Operation(
    "concatenate",
    _concatenate,
    _concatenate_vjp,
    "one or more arrays alike in all but the joined axis",
    flops=no_flops,
)
CLONE = Operation("clone", _clone, _clone_vjp, "one array", flops=no_flops)

OPERATIONS = (RESHAPE, PERMUTE, EXPAND, GETITEM, SETITEM, CONCATENATE, CLONE)
