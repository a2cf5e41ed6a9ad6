"""The sum over all shards of a batch. How shards reach each other comes in from outside, as a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation

Total = Callable[[Array], Array]


def _over_shards(a: Array, total: Total | None) -> Array:
    if total is None:
        return a
    return total(a.astype(np.float64).reshape(-1)).reshape(a.shape).astype(a.dtype)


def _shard_sum(a: Array, total: Total | None) -> tuple[Array, Any]:
    if a.dtype.kind != "f":
        raise TypeError("the values are not floating")
    return _over_shards(a, total), total


def _shard_sum_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    # Each shard's value is in the sum that every shard sees, so its gradient is the sum of theirs.
    return (_over_shards(gradient, saved),)


SHARD_SUM = Operation(
    "shard_sum",
    _shard_sum,
    _shard_sum_vjp,
    "floats, and a function that sums a (k,) float64 array over all shards, or None if there is one shard",
    is_view=True,
)

OPERATIONS = (SHARD_SUM,)
