"""Every operation, in one read-only table by name. A new operation is an entry in its module's tuple."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ddp_bp.engine.ops import (
    arithmetic,
    classification,
    divergence,
    einsum,
    functions,
    indexing,
    joining,
    losses,
    noise,
    product,
    reduction,
    shaping,
    shards,
    special,
    statistics,
    stepwise,
)
from ddp_bp.engine.ops.layers import LAYERS
from ddp_bp.engine.ops.operation import Operation

OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        operation.name: operation
        for module in (
            *(arithmetic, functions, reduction, shaping, product, losses, noise),
            *(special, stepwise, statistics, indexing, joining, einsum, classification, divergence, shards),
            *LAYERS,
        )
        for operation in module.OPERATIONS
    }
)

__all__ = ["OPERATIONS", "Operation"]
