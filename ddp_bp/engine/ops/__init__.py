"""Every operation, in one read-only table by name. A new operation is an entry in its module's tuple."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ddp_bp.engine.ops import arithmetic, functions, losses, noise, product, reduction, shaping
from ddp_bp.engine.ops.layers import LAYERS
from ddp_bp.engine.ops.operation import Operation

OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        operation.name: operation
        for module in (arithmetic, functions, reduction, shaping, product, losses, noise, *LAYERS)
        for operation in module.OPERATIONS
    }
)

__all__ = ["OPERATIONS", "Operation"]
