"""Operations with random numbers. The numbers come in from outside: an operation is a pure function."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation


def _dropout(a: Array, uniform: Array, p: float) -> tuple[Array, Any]:
    """`uniform` (a.shape) holds numbers in [0, 1); elements with a number below `p` become 0."""
    if a.dtype.kind != "f":
        raise TypeError("the input is not floating")
    kept = np.greater_equal(uniform, p)
    scale = 1.0 / (1.0 - p) if p < 1.0 else 0.0
    output = np.asarray(a * kept)
    output *= scale
    return output, (kept, scale)


def _dropout_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    kept, scale = saved
    result = np.asarray(gradient * kept)
    result *= scale
    return result, None


DROPOUT = Operation("dropout", _dropout, _dropout_vjp, "floats, as many numbers in [0, 1), and p in [0, 1]")

OPERATIONS = (DROPOUT,)
