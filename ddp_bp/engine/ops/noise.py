"""Operations with random numbers. The numbers come in from outside: an operation is a pure function."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation


def _dropout(a: Array, kept: Array, p: float) -> tuple[Array, Any]:
    """`kept` (a.shape), booleans, says which elements do not become 0; each is False with probability `p`."""
    if a.dtype.kind != "f" or kept.dtype.kind != "b":
        raise TypeError("the dtypes are others")
    if kept.shape != a.shape:
        raise ValueError("the shapes differ")
    scale = 1.0 / (1.0 - p) if p < 1.0 else 0.0
    output = np.asarray(a * kept)
    output *= scale
    return output, (kept, scale)


def _dropout_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    kept, scale = saved
    result = np.asarray(gradient * kept)
    result *= scale
    return result, None


DROPOUT = Operation(
    "dropout",
    _dropout,
    _dropout_vjp,
    "floats, as many booleans, True where one stays, and p in [0, 1]",
    reads=(1,),
)

OPERATIONS = (DROPOUT,)
