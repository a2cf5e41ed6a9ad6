"""Rows of a table by their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddp_bp.engine.ops.flops import no_flops
from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation, describe
from ddp_bp.errors import DtypeError, ShapeError

# `reduceat` takes this many elements in the time that a call of `reduce` takes, which then is 20 times as fast.
_REDUCE_CALL = 100


def _embedding(weight: Array, indices: Array, padding_idx: int | None) -> tuple[Array, Any]:
    if weight.ndim != 2:
        raise ShapeError(f"embedding got a weight of {describe(weight)}; it takes a weight (num_embeddings, size)")
    if indices.dtype.kind not in "iu":
        raise DtypeError(f"embedding got indices of {describe(indices)}; it takes integer row numbers")
    flat = indices.reshape(-1).astype(np.intp)
    # Seen as unsigned, a negative number is large: one comparison checks both ends.
    if flat.size and np.maximum.reduce(flat.view(np.uintp)) >= len(weight):
        raise ShapeError(
            f"embedding got row numbers from {flat.min()} to {flat.max()} with a weight of {describe(weight)}; "
            f"it takes row numbers in [0, {len(weight)})"
        )
    output = weight.take(flat, axis=0).reshape(*indices.shape, weight.shape[1])
    return output, (flat, weight.shape, padding_idx)


def _embedding_vjp(gradient: Array, saved: Any, needs: Needs, out: Any) -> Gradients:  # noqa: ARG001
    flat, shape, padding_idx = saved
    result = np.zeros(shape, gradient.dtype) if out[0] is None else out[0]
    if out[0] is not None:
        result.fill(0)
    rows = gradient.reshape(len(flat), shape[1])
    # Brought together by row number, in the order in which they came, each number's rows are one sum. That is many
    # times as fast as adding them one by one, and the order of each sum is fixed.
    order = np.argsort(flat, kind="stable")
    numbers, together = flat[order], rows.take(order, axis=0)
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    found = numbers[starts]
    if together.size > _REDUCE_CALL * starts.size:
        ends = [*starts[1:].tolist(), len(flat)]
        for number, start, end in zip(found.tolist(), starts.tolist(), ends, strict=True):
            np.add.reduce(together[start:end], axis=0, out=result[number])
    elif together.size:
        result[found] = np.add.reduceat(together, starts, axis=0)
    if padding_idx is not None:
        result[padding_idx] = 0
    return result, None


EMBEDDING = Operation(
    "embedding",
    _embedding,
    _embedding_vjp,
    "a weight (num_embeddings, size), integers in [0, num_embeddings), and the row without a gradient, or None",
    writes=(0,),
    flops=no_flops,
)

OPERATIONS = (EMBEDDING,)
