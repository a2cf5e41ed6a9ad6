"""Scaled dot-product attention in one piece: softmax(q k^T * scale + mask) v, a few heads at a time.

A. Vaswani et al., "Attention is all you need", NeurIPS 2017. The scores of a few heads stay in the cache while they go
through mask, softmax and dropout; the probabilities are kept for backward.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ddp_bp.engine.ops.layout import block_length
from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation, describe, unbroadcast
from ddp_bp.errors import DtypeError, ShapeError


class _Saved(NamedTuple):
    query: Array
    key: Array
    value: Array
    """(B, L, E), (B, S, E), (B, S, F): all leading axes as one."""
    probabilities: Array
    """(B, L, S), before dropout."""
    kept: Array | None
    """(B, L, S): 0 where dropped, else 1 / (1 - p)."""
    scale: float
    shapes: tuple[tuple[int, ...], ...]


def _attention(query: Array, key: Array, value: Array, *rest: Any) -> tuple[Array, Any]:
    """The arrays after `value`: the mask if `has_mask`, then, if `p` is above 0, which probabilities stay: booleans."""
    *more, has_mask, is_causal, scale, p = rest
    mask = more[0] if has_mask else None
    stays = more[-1] if p > 0.0 else None
    leading = _check(query, key, value, mask, stays)
    queries, keys, values = (_heads(a) for a in (query, key, value))
    num_heads, num_queries, _ = queries.shape
    num_keys = keys.shape[1]
    probabilities = np.empty((num_heads, num_queries, num_keys), query.dtype)
    output = np.empty((num_heads, num_queries, values.shape[2]), query.dtype)
    added = None if mask is None else _as_added(mask, query.dtype)
    if is_causal:
        later = np.arange(num_keys) > np.arange(num_queries)[:, None]
        causal = np.where(later, query.dtype.type(-math.inf), query.dtype.type(0))
        added = causal if added is None else added + causal
    if added is not None and added.ndim > 2:
        added = np.broadcast_to(added, (*leading, num_queries, num_keys)).reshape(probabilities.shape)
    kept = None
    if stays is not None:
        kept = stays.astype(query.dtype).reshape(probabilities.shape)
        kept *= 1.0 / (1.0 - p) if p < 1.0 else 0.0
    for heads in _blocks(num_heads, num_queries * num_keys):
        scores = np.matmul(queries[heads], keys[heads].transpose(0, 2, 1), out=probabilities[heads])
        scores *= scale
        if added is not None:
            scores += added[heads] if added.ndim == 3 else added
        _softmax(scores)
        dropped = scores if kept is None else scores * kept[heads]
        np.matmul(dropped, values[heads], out=output[heads])
    shapes = (query.shape, key.shape, value.shape, *(array.shape for array in more))
    saved = _Saved(queries, keys, values, probabilities, kept, scale, shapes)
    return output.reshape(*leading, num_queries, values.shape[2]), saved


def _softmax(scores: Array) -> None:
    """In place over the last axis. A row without a finite score, that may look at nothing, becomes 0."""
    if not scores.shape[2]:
        return
    highest = np.maximum.reduce(scores, axis=2, keepdims=True)
    np.copyto(highest, 0, where=highest == -math.inf)
    scores -= highest
    np.exp(scores, out=scores)
    totals = np.add.reduce(scores, axis=2, keepdims=True)
    np.copyto(totals, 1, where=totals == 0)
    np.divide(1, totals, out=totals)
    scores *= totals


def _attention_vjp(gradient: Array, saved: _Saved, needs: Needs) -> Gradients:
    queries, keys, values, probabilities, kept, scale, shapes = saved
    incoming = _heads(gradient)
    num_heads, num_queries, num_keys = probabilities.shape
    needs_mask = any(needs[3:])
    grad_query, grad_key, grad_value = (
        np.empty(array.shape, array.dtype) if needed else None
        for array, needed in zip((queries, keys, values), needs, strict=False)
    )
    grad_scores = np.empty_like(probabilities) if needs_mask else None
    for heads in _blocks(num_heads, num_queries * num_keys):
        shares = probabilities[heads]
        if grad_value is not None:
            dropped = shares if kept is None else shares * kept[heads]
            np.matmul(dropped.transpose(0, 2, 1), incoming[heads], out=grad_value[heads])
        if grad_query is None and grad_key is None and grad_scores is None:
            continue
        slope = np.matmul(incoming[heads], values[heads].transpose(0, 2, 1))
        if kept is not None:
            slope *= kept[heads]
        slope -= np.vecdot(slope, shares)[..., None]
        slope *= shares
        if grad_scores is not None:
            grad_scores[heads] = slope
        slope *= scale
        if grad_query is not None:
            np.matmul(slope, keys[heads], out=grad_query[heads])
        if grad_key is not None:
            np.matmul(slope.transpose(0, 2, 1), queries[heads], out=grad_key[heads])
    gradients: list[Array | None] = [
        None if result is None else result.reshape(shape)
        for result, shape in zip((grad_query, grad_key, grad_value), shapes, strict=False)
    ]
    for shape, needed in zip(shapes[3:], needs[3:], strict=True):
        full = None if grad_scores is None else grad_scores.reshape(*shapes[0][:-1], num_keys)
        gradients.append(unbroadcast(full, shape) if needed and full is not None else None)
    return tuple(gradients)


def _heads(a: Array) -> Array:
    """(..., L, E) as (B, L, E)."""
    return a.reshape(math.prod(a.shape[:-2]), *a.shape[-2:])


def _blocks(num_heads: int, scores_per_head: int) -> list[slice]:
    # Four times the usual block: a head's scores are a product's output, too, and products like large operands.
    step = block_length(-(-scores_per_head // 4))
    return [slice(start, min(start + step, num_heads)) for start in range(0, num_heads, step)]


def _as_added(mask: Array, dtype: Any) -> Array:
    """A boolean mask, True where a query may look at a key, as numbers to add to the scores."""
    if mask.dtype.kind == "b":
        return np.asarray(np.where(mask, 0.0, -math.inf), dtype)
    return mask


def _check(query: Array, key: Array, value: Array, mask: Array | None, stays: Array | None) -> tuple[int, ...]:
    """The leading axes, if everything fits together."""
    got = f"scaled_dot_product_attention got {', '.join(describe(array) for array in (query, key, value))}"
    expected = "it takes a query (..., L, E), a key (..., S, E) and a value (..., S, F) of one floating dtype"
    if query.dtype.kind != "f" or key.dtype != query.dtype or value.dtype != query.dtype:
        raise DtypeError(f"{got}; {expected}")
    leading = query.shape[:-2]
    if (
        min(query.ndim, key.ndim, value.ndim) < 2
        or key.shape[:-2] != leading
        or value.shape[:-2] != leading
        or key.shape[-1] != query.shape[-1]
        or value.shape[-2] != key.shape[-2]
    ):
        raise ShapeError(f"{got}; {expected}")
    scores = (*query.shape[:-1], key.shape[-2])
    if mask is not None:
        if mask.dtype.kind != "b" and mask.dtype != query.dtype:
            raise DtypeError(f"{got} and a mask of {describe(mask)}; {expected}, and a mask of bool or that dtype")
        if mask.ndim < 2 or np.broadcast_shapes(mask.shape, scores) != scores:
            raise ShapeError(f"{got} and a mask of {describe(mask)}; {expected}, and a mask that expands to {scores}")
    if stays is not None and (stays.shape != scores or stays.dtype.kind != "b"):
        raise ShapeError(f"{got} and dropout by {describe(stays)}; {expected}, and for dropout booleans {scores}")
    return leading


def _self_attention(packed: Array, *rest: Any) -> tuple[Array, Any]:
    """(N, L, 3 * H * D) with queries, keys and values of H heads beside each other: (N, L, H * D)."""
    *more, num_heads, has_mask, is_causal, scale, p = rest
    if packed.dtype.kind != "f":
        raise DtypeError(f"self_attention got {describe(packed)}; it takes a floating dtype")
    if packed.ndim != 3 or num_heads < 1 or packed.shape[2] % (3 * num_heads):
        raise ShapeError(
            f"self_attention got {describe(packed)} with {num_heads} heads; it takes queries, keys and values beside "
            "each other, (N, L, 3 * heads * size)"
        )
    num_samples, length, width = packed.shape
    parts = packed.reshape(num_samples, length, 3, num_heads, width // (3 * num_heads)).transpose(2, 0, 3, 1, 4)
    output, saved = _attention(*parts, *more, has_mask, is_causal, scale, p)
    return output.transpose(0, 2, 1, 3).reshape(num_samples, length, width // 3), saved


def _self_attention_vjp(gradient: Array, saved: _Saved, needs: Needs) -> Gradients:
    num_samples, num_heads, length, size = saved.shapes[0]
    incoming = gradient.reshape(num_samples, length, num_heads, size).transpose(0, 2, 1, 3)
    *parts, of_mask, of_stays = (*_attention_vjp(incoming, saved, (*[needs[0]] * 3, *needs[1:])), None, None)[:5]
    packed = None
    if needs[0]:
        beside = np.empty((num_samples, length, 3, num_heads, size), gradient.dtype)
        for position, part in enumerate(parts):
            assert part is not None
            beside[:, :, position] = part.transpose(0, 2, 1, 3)
        packed = beside.reshape(num_samples, length, 3 * num_heads * size)
    return (packed, of_mask, of_stays)[: len(needs)]


SCALED_DOT_PRODUCT_ATTENTION = Operation(
    "scaled_dot_product_attention",
    _attention,
    _attention_vjp,
    "a query (..., L, E), a key (..., S, E), a value (..., S, F), perhaps a mask (..., L, S), and options",
    reads=(0, 1, 2),
)

SELF_ATTENTION = Operation(
    "self_attention",
    _self_attention,
    _self_attention_vjp,
    "queries, keys and values beside each other, perhaps a mask (..., L, L), and options",
    reads=(0,),
)

OPERATIONS = (SCALED_DOT_PRODUCT_ATTENTION, SELF_ATTENTION)
