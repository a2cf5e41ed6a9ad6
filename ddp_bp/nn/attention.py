"""Multi-head attention."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ddp_bp.engine.functional import as_tensor
from ddp_bp.engine.functional_sequence import self_attention
from ddp_bp.engine.ops.operation import Array
from ddp_bp.engine.tensor import Parameter, Tensor
from ddp_bp.errors import InputError, ShapeError
from ddp_bp.nn import functional, init
from ddp_bp.nn.layers import Linear
from ddp_bp.nn.module import Module


class MultiheadAttention(Module):
    """Attention of `num_heads` heads, each on its part of projections of query, key and value.

    Inputs are (L, N, embed_dim), (S, N, kdim) and (S, N, vdim), with `batch_first` (N, L, embed_dim) and so on, or
    without N; the output is like the query. `in_proj_weight` (3 * embed_dim, embed_dim) holds the projections of query,
    key and value one below the other; where kdim or vdim differ they are `q_proj_weight`, `k_proj_weight` and
    `v_proj_weight`. Projections start uniform as by Glorot, biases at 0. `dropout` is that of the probabilities.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise InputError(
                f"MultiheadAttention takes an embed_dim that num_heads divides and got {embed_dim} and {num_heads}"
            )
        if not 0.0 <= dropout <= 1.0:
            raise InputError(f"MultiheadAttention takes a dropout in [0, 1] and got {dropout}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.batch_first = batch_first
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        if self.kdim == self.vdim == embed_dim:
            self.in_proj_weight = Parameter(np.empty((3 * embed_dim, embed_dim), dtype))
        else:
            self.q_proj_weight = Parameter(np.empty((embed_dim, embed_dim), dtype))
            self.k_proj_weight = Parameter(np.empty((embed_dim, self.kdim), dtype))
            self.v_proj_weight = Parameter(np.empty((embed_dim, self.vdim), dtype))
        self.in_proj_bias = Parameter(np.empty(3 * embed_dim, dtype)) if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias, dtype=dtype)
        self.reset_parameters()

    @property
    def _is_packed(self) -> bool:
        return self.kdim == self.vdim == self.embed_dim

    def reset_parameters(self) -> None:
        if self._is_packed:
            init.xavier_uniform_(self.in_proj_weight)
        else:
            for weight in (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
                init.xavier_uniform_(weight)
        self.out_proj.reset_parameters()
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                init.zeros_(bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | Array | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | Array | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The output and, with `need_weights`, the probabilities (N, L, S), or (N, heads, L, S) if not averaged.

        `key_padding_mask` (N, S) and `attn_mask`, (L, S) or (N * heads, L, S), are booleans, True where a query may
        NOT look, or numbers to add to the scores. `is_causal` masks later keys, with other masks or alone. Without
        `need_weights` the scores of a few heads at a time stay in the cache, which is faster.
        """
        if not query.ndim == key.ndim == value.ndim or query.ndim not in (2, 3):
            raise ShapeError(
                f"MultiheadAttention got a query, key and value of shapes {query.shape}, {key.shape} and "
                f"{value.shape}; it takes three of 3 axes, or of 2 without the batch"
            )
        is_self = query is key and key is value and self._is_packed
        is_batched = query.ndim == 3
        query, key, value = (self._batch(given, is_batched) for given in (query, key, value))
        shape = (query.shape[0], self.num_heads, query.shape[1], key.shape[1])
        mask = _mask(key_padding_mask, attn_mask, shape, query.dtype)
        probability = self.dropout if self.training else 0.0
        weights = None
        if is_self and not need_weights:
            packed = functional.linear(query, self.in_proj_weight, self.in_proj_bias)
            joined = self_attention(packed, self.num_heads, mask, probability, is_causal, stream_key=self.stream_key)
        else:
            heads = self._project(query, key, value)
            if need_weights:
                attended, weights = _attend(*heads, mask, probability, is_causal, self.stream_key)
            else:
                attended = functional.scaled_dot_product_attention(
                    *heads, mask, probability, is_causal, stream_key=self.stream_key
                )
            joined = attended.permute(0, 2, 1, 3).reshape(*query.shape)
        output = functional.linear(joined, self.out_proj.weight, self.out_proj.bias)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not is_batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _batch(self, given: Tensor, is_batched: bool) -> Tensor:
        """(N, L, features), whichever way it was given."""
        if not is_batched:
            return given[None]
        return given if self.batch_first else given.transpose(0, 1)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each projected and split into heads: (N, heads, L or S, size)."""
        size, bias = self.embed_dim, self.in_proj_bias
        parts = [slice(start, start + size) for start in (0, size, 2 * size)]
        if self._is_packed:
            weights = [self.in_proj_weight[part] for part in parts]
        else:
            weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        q, k, v = (
            functional.linear(given, weight, None if bias is None else bias[part])
            .reshape(*given.shape[:2], self.num_heads, size // self.num_heads)
            .permute(0, 2, 1, 3)
            for given, weight, part in zip((query, key, value), weights, parts, strict=True)
        )
        return q, k, v


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    probability: float,
    is_causal: bool,
    stream_key: int,
) -> tuple[Tensor, Tensor]:
    """Attention step by step, for the probabilities (N, heads, L, S) as well."""
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    if is_causal:
        num_queries, num_keys = scores.shape[-2:]
        later = np.arange(num_keys) > np.arange(num_queries)[:, None]
        scores = scores + Tensor(_as_added(later, scores.dtype))
    weights = functional.dropout(scores.softmax(-1), probability, stream_key=stream_key)
    return weights @ value, weights


def _as_added(forbidden: Array, dtype: npt.DTypeLike) -> Array:
    return np.where(forbidden, -math.inf, 0.0).astype(dtype)


def _mask(
    key_padding_mask: Tensor | Array | None,
    attn_mask: Tensor | Array | None,
    shape: tuple[int, int, int, int],
    dtype: np.dtype[np.generic],
) -> Tensor | None:
    """Both masks as one to add to scores of `shape` (N, heads, L, S), which it broadcasts to."""
    num_samples, num_heads, num_queries, num_keys = shape
    masks = []
    if key_padding_mask is not None:
        padding = _added("key_padding_mask", key_padding_mask, dtype)
        if padding.shape != (num_samples, num_keys) and padding.shape != (num_keys,):
            raise ShapeError(f"key_padding_mask has shape {padding.shape}; it takes {(num_samples, num_keys)}")
        masks.append(padding.reshape(-1, 1, 1, num_keys))
    if attn_mask is not None:
        mask = _added("attn_mask", attn_mask, dtype)
        if mask.shape not in ((num_queries, num_keys), (num_samples * num_heads, num_queries, num_keys)):
            raise ShapeError(
                f"attn_mask has shape {mask.shape}; it takes {(num_queries, num_keys)} or "
                f"{(num_samples * num_heads, num_queries, num_keys)}"
            )
        masks.append(mask if mask.ndim == 2 else mask.reshape(*shape))
    if not masks:
        return None
    return masks[0] if len(masks) == 1 else masks[0] + masks[1]


def _added(name: str, mask: Tensor | Array, dtype: np.dtype[np.generic]) -> Tensor:
    given = as_tensor(mask)
    if given.dtype == np.bool_:
        return Tensor(_as_added(given.numpy(), dtype))
    if given.dtype.kind != "f":
        raise InputError(f"{name} takes booleans, True where not to look, or floats to add, and got {given.dtype}")
    return given.to(dtype)
