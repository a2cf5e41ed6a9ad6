"""A causal transformer for text (Radford et al., "Language models are unsupervised multitask learners", 2019).

Its blocks have the names of PyTorch's TransformerEncoder of layers with `norm_first=True`, under `body`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from msgspec import Meta

from ddp_bp.engine.tensor import Tensor
from ddp_bp.errors import InputError, ShapeError
from ddp_bp.nn import functional, init
from ddp_bp.nn.attention import MultiheadAttention
from ddp_bp.nn.containers import ModuleList
from ddp_bp.nn.embedding import Embedding, LearnedPositionalEncoding
from ddp_bp.nn.layers import Dropout, Linear
from ddp_bp.nn.models.options import Fraction, Shape, Size, checked
from ddp_bp.nn.module import Module
from ddp_bp.nn.normalization import LayerNorm

# Deviation of the initial weights.
_STD = 0.02


@checked
def gpt(
    input_shape: Shape,
    num_outputs: Size,
    *,
    width: Size = 128,
    num_layers: Annotated[int, Meta(ge=0)] = 4,
    num_heads: Size = 4,
    hidden: Size | None = None,
    dropout: Fraction = 0.0,
    tied: bool = True,
) -> Module:
    """A transformer from tokens, int64 (N, T), to the logits of each next one, (N, T, num_outputs).

    T is at most the context, input_shape[0]; tokens are below `num_outputs`, the size of the vocabulary. Embeddings of
    tokens and positions (width,) go through `num_layers` pre-norm blocks: causal attention of `num_heads` heads, and
    two Linear with GELU (tanh form) and `hidden` units, by default 4 * width, between them. Then a LayerNorm and a
    Linear without bias, whose weight is that of the token embedding if `tied`. `dropout` is that of the embeddings and
    of what each half of a block adds.

    Weights start normal with deviation 0.02, those that write to the residual stream with 0.02 / sqrt(2 * num_layers),
    and biases at 0. Raises InputError for an argument that cannot be used: `num_heads` must divide `width`.
    """
    if len(input_shape) != 1:
        raise InputError(f"gpt takes texts, with an input_shape of one length, and got {tuple(input_shape)}")
    return GPT(input_shape[0], num_outputs, width, num_layers, num_heads, hidden or 4 * width, dropout, tied)


def _conflicts(options: dict[str, Any]) -> dict[str, str]:
    width, num_heads = options["width"], options["num_heads"]
    return {"num_heads": f"expected a divisor of width = {width}, got {num_heads}"} if width % num_heads else {}


gpt.conflicts = _conflicts  # type: ignore[attr-defined]


class GPT(Module):
    """What `gpt` builds; arguments are those of it."""

    def __init__(
        self,
        context: int,
        num_tokens: int,
        width: int,
        num_layers: int,
        num_heads: int,
        hidden: int,
        dropout: float,
        tied: bool,
    ) -> None:
        self.context = context
        self.tokens = Embedding(num_tokens, width)
        self.positions = LearnedPositionalEncoding(context, width)
        self.dropout = Dropout(dropout)
        self.body = _Body(width, num_layers, num_heads, hidden, dropout)
        self.head = Linear(width, num_tokens, bias=False)
        init.normal_(self.tokens.weight, std=_STD)
        if tied:
            self.head.weight = self.tokens.weight
        else:
            init.normal_(self.head.weight, std=_STD)

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim != 2 or input.shape[1] > self.context:
            raise ShapeError(f"gpt got tokens of shape {input.shape}; it takes (N, T) with T up to {self.context}")
        x = self.dropout(self.positions(self.tokens(input)))
        output: Tensor = self.head(self.body(x))
        return output


class _Body(Module):
    def __init__(self, width: int, num_layers: int, num_heads: int, hidden: int, dropout: float) -> None:
        std = _STD / math.sqrt(2 * max(num_layers, 1))
        self.layers = ModuleList(_Block(width, num_heads, hidden, dropout, std) for _ in range(num_layers))
        self.norm = LayerNorm(width)

    def forward(self, input: Tensor) -> Tensor:
        for layer in self.layers:
            input = layer(input)
        output: Tensor = self.norm(input)
        return output


class _Block(Module):
    """One block; `std` is the deviation of the initial weights that write to the residual stream."""

    def __init__(self, width: int, num_heads: int, hidden: int, dropout: float, std: float) -> None:
        self.self_attn = MultiheadAttention(width, num_heads, batch_first=True)
        self.linear1 = Linear(width, hidden)
        self.linear2 = Linear(hidden, width)
        self.norm1 = LayerNorm(width)
        self.norm2 = LayerNorm(width)
        self.dropout = Dropout(dropout)
        init.normal_(self.self_attn.in_proj_weight, std=_STD)
        init.normal_(self.self_attn.out_proj.weight, std=std)
        for linear, deviation in ((self.linear1, _STD), (self.linear2, std)):
            init.normal_(linear.weight, std=deviation)
            assert linear.bias is not None
            init.zeros_(linear.bias)

    def forward(self, input: Tensor) -> Tensor:
        normed = self.norm1(input)
        attended, _ = self.self_attn(normed, normed, normed, need_weights=False, is_causal=True)
        x = input + self.dropout(attended)
        fed = self.linear2(functional.gelu(self.linear1(self.norm2(x)), "tanh"))
        output: Tensor = x + self.dropout(fed)
        return output
