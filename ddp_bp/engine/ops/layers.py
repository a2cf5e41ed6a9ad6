"""The modules with the operations of layers, as the table of operations takes them."""

from __future__ import annotations

from ddp_bp.engine.ops import (
    activation,
    attention,
    bilinear,
    convolution,
    embedding,
    normalization,
    padding,
    pooling,
    recurrent,
    row_norm,
)

LAYERS = (
    activation,
    attention,
    bilinear,
    convolution,
    embedding,
    normalization,
    padding,
    pooling,
    recurrent,
    row_norm,
)
