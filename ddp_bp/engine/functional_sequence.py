"""Embedding, attention and bilinear forms as functions of tensors, with PyTorch's arguments."""

from __future__ import annotations

import math
from operator import index

from ddp_bp.engine import random
from ddp_bp.engine.functional import as_tensor
from ddp_bp.engine.misuse import explained, number
from ddp_bp.engine.ops import attention
from ddp_bp.engine.ops import bilinear as bilinear_ops
from ddp_bp.engine.ops import embedding as embedding_ops
from ddp_bp.engine.ops.operation import Array
from ddp_bp.engine.tensor import Tensor, apply
from ddp_bp.errors import InputError


@explained
def embedding(input: Tensor | Array, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """The rows of `weight` (num_embeddings, size) that integers `input` (...) name: (..., size).

    The row `padding_idx`, which may count from the end, gets no gradient.
    """
    row = None if padding_idx is None else index(padding_idx)
    if row is not None and weight.ndim == 2:
        if not -weight.shape[0] <= row < weight.shape[0]:
            raise InputError(f"embedding got padding_idx {row}; it takes a row of a weight of shape {weight.shape}")
        row %= weight.shape[0]
    return apply(embedding_ops.EMBEDDING, (weight, as_tensor(input)), (row,))


@explained
def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., in1) and (..., in2) with `weight` (out, in1, in2): (..., out)."""
    inputs = (input1, input2, weight)
    return apply(bilinear_ops.BILINEAR, inputs if bias is None else (*inputs, bias))


@explained
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    stream_key: int = 0,
) -> Tensor:
    """softmax(query key^T * scale + mask) value; query (..., L, E), key (..., S, E), value (..., S, F): (..., L, F).

    `attn_mask` expands to (..., L, S): booleans, True where a query may look at a key, or numbers to add to the scores.
    `is_causal` lets query i look at keys up to i, in addition to a mask if there is one. A query that may look at
    nothing gets zeros. `scale` is 1 / sqrt(E) unless given. Dropout is applied whenever `dropout_p` is above 0; it
    draws once under `stream_key`; see `ddp_bp.engine.random`.
    """
    size = query.shape[-1] if query.ndim else 1
    shape = (*query.shape[:-1], *key.shape[-2:-1])
    more, options = _options(attn_mask, dropout_p, is_causal, scale, size, shape, stream_key)
    return apply(attention.SCALED_DOT_PRODUCT_ATTENTION, (query, key, value, *more), options)


@explained
def self_attention(
    packed: Tensor,
    num_heads: int,
    attn_mask: Tensor | Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    stream_key: int = 0,
) -> Tensor:
    """Attention of several heads with queries, keys and values side by side in `packed` (N, L, 3 * heads * size).

    The mask expands to (N, heads, L, L). Gives (N, L, heads * size). Unlike slices of `packed`, it needs one gradient.
    """
    size = packed.shape[-1] // (3 * num_heads) if packed.ndim and num_heads > 0 else 1
    shape = (packed.shape[0], num_heads, packed.shape[1], packed.shape[1]) if packed.ndim == 3 else ()
    more, options = _options(attn_mask, dropout_p, is_causal, scale, size, shape, stream_key)
    return apply(attention.SELF_ATTENTION, (packed, *more), (num_heads, *options))


def _options(
    attn_mask: Tensor | Array | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    size: int,
    shape: tuple[int, ...],
    stream_key: int,
) -> tuple[tuple[Tensor, ...], tuple[bool, bool, float, float]]:
    """The inputs after the first ones, and the options, of either operation."""
    if not 0.0 <= dropout_p <= 1.0:
        raise InputError(f"attention takes a probability dropout_p in [0, 1] and got {dropout_p}")
    more: tuple[Tensor, ...] = () if attn_mask is None else (as_tensor(attn_mask),)
    if dropout_p > 0.0:
        more = (*more, Tensor(random.draw_kept(shape, dropout_p, stream_key)))
    factor = 1 / math.sqrt(max(size, 1)) if scale is None else number("attention", "scale", scale)
    return more, (attn_mask is not None, is_causal, factor, dropout_p)
