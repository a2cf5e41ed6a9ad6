"""Embeddings of numbers and of positions."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ddp_bp.engine.graph import no_grad
from ddp_bp.engine.ops.operation import Array
from ddp_bp.engine.tensor import Parameter, Tensor
from ddp_bp.errors import InputError, ShapeError
from ddp_bp.nn import functional, init
from ddp_bp.nn.module import Module


class Embedding(Module):
    """Integers (...) to rows of `weight` (num_embeddings, embedding_dim): (..., embedding_dim).

    `weight` starts standard normal. The row `padding_idx`, which may count from the end, starts at 0 and gets no
    gradient.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        if num_embeddings < 1 or embedding_dim < 1:
            raise InputError(f"Embedding takes sizes above 0 and got {num_embeddings} and {embedding_dim}")
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise InputError(f"Embedding got padding_idx {padding_idx} for {num_embeddings} rows")
            padding_idx %= num_embeddings
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.weight = Parameter(np.empty((num_embeddings, embedding_dim), dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.normal_(self.weight)
        if self.padding_idx is not None:
            with no_grad():
                self.weight[self.padding_idx] = 0

    def forward(self, input: Tensor | Array) -> Tensor:
        return functional.embedding(input, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        return text if self.padding_idx is None else f"{text}, padding_idx={self.padding_idx}"


class SinusoidalPositionalEncoding(Module):
    """Adds sin and cos of the position at `embedding_dim` wavelengths from 2 pi to 10,000 * 2 pi to (..., L, E).

    Element 2i of position t is sin(t / 10000^(2i / E)), element 2i + 1 the cosine (Vaswani et al., 2017). There is
    nothing to train or to save.
    """

    def __init__(self, max_length: int, embedding_dim: int) -> None:
        if max_length < 1 or embedding_dim < 1:
            raise InputError(f"SinusoidalPositionalEncoding takes sizes above 0: {max_length} and {embedding_dim}")
        self.max_length = max_length
        self.embedding_dim = embedding_dim
        rates = np.exp(-math.log(10000.0) * (np.arange(embedding_dim) // 2 * 2 / embedding_dim))
        table = np.arange(max_length)[:, None] * rates
        table[:, 0::2] = np.sin(table[:, 0::2])
        table[:, 1::2] = np.cos(table[:, 1::2])
        self.table: Array = table

    def forward(self, input: Tensor) -> Tensor:
        length = _length(self, input, self.max_length, self.embedding_dim)
        return input + Tensor(self.table[:length].astype(input.dtype))

    def extra_repr(self) -> str:
        return f"{self.max_length}, {self.embedding_dim}"


class LearnedPositionalEncoding(Module):
    """Adds the first L rows of `weight` (max_length, embedding_dim) to (..., L, E).

    The parameter is that of an Embedding of positions; it starts normal with deviation 0.02.
    """

    def __init__(self, max_length: int, embedding_dim: int, *, dtype: npt.DTypeLike = np.float32) -> None:
        if max_length < 1 or embedding_dim < 1:
            raise InputError(f"LearnedPositionalEncoding takes sizes above 0: {max_length} and {embedding_dim}")
        self.max_length = max_length
        self.embedding_dim = embedding_dim
        self.weight = Parameter(np.empty((max_length, embedding_dim), dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.normal_(self.weight, std=0.02)

    def forward(self, input: Tensor) -> Tensor:
        length = _length(self, input, self.max_length, self.embedding_dim)
        return input + (self.weight if length == self.max_length else self.weight[:length])

    def extra_repr(self) -> str:
        return f"{self.max_length}, {self.embedding_dim}"


def _length(module: Module, input: Tensor, max_length: int, embedding_dim: int) -> int:
    if input.ndim < 2 or input.shape[-1] != embedding_dim or input.shape[-2] > max_length:
        raise ShapeError(
            f"{type(module).__name__} got an input of shape {input.shape}; it takes (..., L, {embedding_dim}) with L "
            f"up to {max_length}"
        )
    return input.shape[-2]
