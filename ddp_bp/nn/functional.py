"""Layers and losses as functions of tensors, under the names of torch.nn.functional."""

from __future__ import annotations

from ddp_bp.engine.functional import dropout, linear
from ddp_bp.engine.functional_activation import elu, gelu, leaky_relu, silu, softplus
from ddp_bp.engine.functional_arrays import pad
from ddp_bp.engine.functional_losses import (
    binary_cross_entropy_with_logits,
    cosine_embedding_loss,
    cross_entropy,
    huber_loss,
    kl_div,
    l1_loss,
    mse_loss,
    nll_loss,
    smooth_l1_loss,
)
from ddp_bp.engine.functional_norm import batch_norm, group_norm, layer_norm, rms_norm, shard_sum, sync_batch_norm
from ddp_bp.engine.functional_sequence import bilinear, embedding, scaled_dot_product_attention
from ddp_bp.engine.functional_spatial import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    avg_pool1d,
    avg_pool2d,
    conv1d,
    conv2d,
    conv_transpose2d,
    max_pool1d,
    max_pool2d,
)
from ddp_bp.engine.ops import functions, losses
from ddp_bp.engine.tensor import Tensor, apply


def relu(input: Tensor) -> Tensor:
    return apply(functions.RELU, (input,))


def tanh(input: Tensor) -> Tensor:
    return apply(functions.TANH, (input,))


def sigmoid(input: Tensor) -> Tensor:
    return apply(functions.SIGMOID, (input,))


def softmax(input: Tensor, dim: int) -> Tensor:
    return apply(losses.SOFTMAX, (input,), (dim,))


def log_softmax(input: Tensor, dim: int) -> Tensor:
    return apply(losses.LOG_SOFTMAX, (input,), (dim,))


__all__ = [
    "binary_cross_entropy_with_logits",
    "cosine_embedding_loss",
    "cross_entropy",
    "dropout",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "linear",
    "log_softmax",
    "mse_loss",
    "nll_loss",
    "pad",
    "relu",
    "sigmoid",
    "smooth_l1_loss",
    "softmax",
    "tanh",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "batch_norm",
    "bilinear",
    "conv1d",
    "conv2d",
    "conv_transpose2d",
    "elu",
    "embedding",
    "gelu",
    "group_norm",
    "layer_norm",
    "leaky_relu",
    "max_pool1d",
    "max_pool2d",
    "rms_norm",
    "scaled_dot_product_attention",
    "shard_sum",
    "silu",
    "softplus",
    "sync_batch_norm",
]
