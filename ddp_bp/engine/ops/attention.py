"""Scaled dot-product attention in one piece: softmax(q k^T * scale + mask) v, a few heads at a time.

A. Vaswani et al., "Attention is all you need", NeurIPS 2017. The scores of a few heads stay in the cache while they go
through mask, exponential and dropout. Rows of exponentials are divided by their sums where it takes least: in the
output, as they are kept for backward, and in its gradient. What softmax's gradient takes off a row of scores, the sum
of shares times their gradients, is the product of the row's output with its gradient [T. Dao et al., "FlashAttention",
NeurIPS 2022].
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ddp_bp.engine.ops.exponentials import exponentials
from ddp_bp.engine.ops.layout import block_length
from ddp_bp.engine.ops.operation import Array, Flops, Gradients, Needs, Operation, describe, unbroadcast
from ddp_bp.errors import DtypeError, ShapeError

# As few as products still run at full speed with.
_CAUSAL_QUERIES = 64


class _Saved(NamedTuple):
    query: Array
    key: Array
    value: Array
    """(B, L, E), times the scale, (B, S, E), (B, S, F): all leading axes as one."""
    blocks: list[tuple[slice, slice, slice, Array]]
    """Heads, queries and keys, and the shares of these keys, before dropout, times a factor of the row."""
    inverses: Array
    """(B, L, 1): one over that factor, or 0 for a query that may look at nothing."""
    kept: Array | None
    """(B, L, S): 0 where dropped, else 1 / (1 - p)."""
    output: Array
    """(B, L, F)."""
    scale: float
    shapes: tuple[tuple[int, ...], ...]


def _attention(query: Array, key: Array, value: Array, *rest: Any) -> tuple[Array, Any]:
    """The arrays after `value`: the mask if `has_mask`, then, if `p` is above 0, which probabilities stay: booleans."""
    *more, has_mask, is_causal, scale, p = rest
    mask = more[0] if has_mask else None
    stays = more[-1] if p > 0.0 else None
    leading = _check(query, key, value, mask, stays)
    keys, values = _heads(key), _heads(value)
    queries = _heads(query) * query.dtype.type(scale)
    num_heads, num_queries, _ = queries.shape
    num_keys = keys.shape[1]
    blocks = []
    inverses = np.zeros((num_heads, num_queries, 1), query.dtype)
    output = np.empty((num_heads, num_queries, values.shape[2]), query.dtype)
    added = None if mask is None else _as_added(mask, query.dtype)
    if is_causal:
        causal = np.where(_later(num_queries, num_keys), query.dtype.type(-math.inf), query.dtype.type(0))
        added = causal if added is None else added + causal
    all_scores = (num_heads, num_queries, num_keys)
    if added is not None and added.ndim > 2:
        added = np.broadcast_to(added, (*leading, num_queries, num_keys)).reshape(all_scores)
    kept = None
    if stays is not None:
        kept = stays.astype(query.dtype).reshape(all_scores)
        kept *= 1.0 / (1.0 - p) if p < 1.0 else 0.0
    with np.errstate(all="ignore"):
        for heads, asked, seen in _blocks(num_heads, num_queries, num_keys, is_causal):
            scores = np.matmul(queries[heads, asked], keys[heads, seen].transpose(0, 2, 1))
            if added is not None:
                scores += added[asked, seen] if added.ndim == 2 else added[heads, asked, seen]
            rows, totals = exponentials(scores.reshape(scores.shape[0] * scores.shape[1], scores.shape[2]))
            shares = rows.reshape(scores.shape)
            blocks.append((heads, asked, seen, shares))
            if kept is not None:
                shares = np.multiply(shares, kept[heads, asked, seen], out=scores)
            inverse = inverses[heads, asked]
            np.divide(1, totals.reshape(inverse.shape), out=inverse, where=totals.reshape(inverse.shape) != 0)
            np.multiply(np.matmul(shares, values[heads, seen]), inverse, out=output[heads, asked])
    shapes = (query.shape, key.shape, value.shape, *(array.shape for array in more))
    saved = _Saved(queries, keys, values, blocks, inverses, kept, output, scale, shapes)
    return output.reshape(*leading, num_queries, values.shape[2]), saved


def _attention_vjp(gradient: Array, saved: _Saved, needs: Needs) -> Gradients:
    queries, keys, values, blocks, inverses, kept, output, scale, shapes = saved
    incoming = _heads(gradient) * inverses
    along = np.vecdot(incoming, output)[..., None]
    grad_query, grad_key, grad_value = (
        np.zeros(array.shape, array.dtype) if needed else None
        for array, needed in zip((queries, keys, values), needs, strict=False)
    )
    grad_scores = np.zeros((*queries.shape[:2], keys.shape[1]), queries.dtype) if any(needs[3:]) else None
    for heads, asked, seen, shares in blocks:
        arriving = incoming[heads, asked]
        if grad_value is not None:
            dropped = shares if kept is None else shares * kept[heads, asked, seen]
            grad_value[heads, seen] += np.matmul(dropped.transpose(0, 2, 1), arriving)
        if grad_query is None and grad_key is None and grad_scores is None:
            continue
        slope = np.matmul(arriving, values[heads, seen].transpose(0, 2, 1))
        if kept is not None:
            slope *= kept[heads, asked, seen]
        slope -= along[heads, asked]
        slope *= shares
        if grad_scores is not None:
            grad_scores[heads, asked, seen] = slope
        if grad_query is not None:
            grad_query[heads, asked] = np.matmul(slope, keys[heads, seen])
        if grad_key is not None:
            # The queries have the scale in them.
            grad_key[heads, seen] += np.matmul(slope.transpose(0, 2, 1), queries[heads, asked])
    if grad_query is not None:
        grad_query *= scale
    gradients: list[Array | None] = [
        None if result is None else result.reshape(shape)
        for result, shape in zip((grad_query, grad_key, grad_value), shapes, strict=False)
    ]
    for shape, needed in zip(shapes[3:], needs[3:], strict=True):
        full = None if grad_scores is None else grad_scores.reshape(*shapes[0][:-1], keys.shape[1])
        gradients.append(unbroadcast(full, shape) if needed and full is not None else None)
    return tuple(gradients)


def _heads(a: Array) -> Array:
    """(..., L, E) as (B, L, E)."""
    return a.reshape(math.prod(a.shape[:-2]), *a.shape[-2:])


def _blocks(num_heads: int, num_queries: int, num_keys: int, is_causal: bool) -> Iterator[tuple[slice, slice, slice]]:
    """Blocks of heads, queries and keys that are computed at once; a query's keys are all in one block.

    With `is_causal` queries are cut as well, so that keys later than all of them are left out.
    """
    size = _CAUSAL_QUERIES if is_causal else max(num_queries, 1)
    for begin in range(0, num_queries, size):
        end = min(begin + size, num_queries)
        num_seen = min(end, num_keys) if is_causal else num_keys
        # Four times the usual block: scores are a product's output, too, and products like large operands.
        step = block_length(-(-(end - begin) * num_seen // 4))
        for start in range(0, num_heads, step):
            yield slice(start, min(start + step, num_heads)), slice(begin, end), slice(0, num_seen)


def _later(num_queries: int, num_keys: int) -> Array:
    """(L, S): where a key comes after its query."""
    return np.asarray(np.arange(num_keys) > np.arange(num_queries)[:, None])


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
    # A copy in any case: what is saved must not be seen from outside.
    joined = np.array(output.transpose(0, 2, 1, 3), order="C")
    return joined.reshape(num_samples, length, width // 3), saved


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


def _attention_flops(shapes: tuple[tuple[int, ...], ...], output: tuple[int, ...], *options: Any) -> Flops:
    """Counts the scores that are computed: with `is_causal`, not those of blocks that are left out."""
    is_causal = options[1]
    blocks = _blocks(math.prod(output[:-2]), shapes[0][-2], shapes[1][-2], is_causal)
    scores = sum(math.prod(part.stop - part.start for part in block) for block in blocks)
    by_key, by_value = 2 * scores * shapes[0][-1], 2 * scores * output[-1]
    return by_key + by_value, (by_value + by_key, by_key, by_value, *[scores] * (len(shapes) - 3))


def _self_attention_flops(shapes: tuple[tuple[int, ...], ...], output: tuple[int, ...], *options: Any) -> Flops:
    num_samples, length, width = output
    heads = (num_samples, options[0], length, width // options[0])
    forward, gradients = _attention_flops((heads, heads, heads, *shapes[1:]), heads, *options[1:])
    return forward, (sum(gradients[:3]), *gradients[3:])


SCALED_DOT_PRODUCT_ATTENTION = Operation(
    "scaled_dot_product_attention",
    _attention,
    _attention_vjp,
    "a query (..., L, E), a key (..., S, E), a value (..., S, F), perhaps a mask (..., L, S), and options",
    reads=(0, 1, 2),
    reads_output=True,
    flops=_attention_flops,
)

SELF_ATTENTION = Operation(
    "self_attention",
    _self_attention,
    _self_attention_vjp,
    "queries, keys and values beside each other, perhaps a mask (..., L, L), and options",
    reads=(0,),
    flops=_self_attention_flops,
)

OPERATIONS = (SCALED_DOT_PRODUCT_ATTENTION, SELF_ATTENTION)
