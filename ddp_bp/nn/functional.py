"""Layers and losses as functions of tensors, under the names of torch.nn.functional."""

from __future__ import annotations

from ddp_bp.engine.functional import cross_entropy, dropout, linear, mse_loss
from ddp_bp.engine.functional_activation import elu, gelu, leaky_relu, silu, softplus
from ddp_bp.engine.functional_norm import batch_norm, group_norm, layer_norm, rms_norm
from ddp_bp.engine.functional_sequence import bilinear, embedding, scaled_dot_product_attention, self_attention
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
    zero_pad2d,
)
from ddp_bp.engine.tensor import Tensor


def relu(input: Tensor) -> Tensor:
    return input.relu()


def tanh(input: Tensor) -> Tensor:
    return input.tanh()


def sigmoid(input: Tensor) -> Tensor:
    return input.sigmoid()


def softmax(input: Tensor, dim: int) -> Tensor:
    return input.softmax(dim)


def log_softmax(input: Tensor, dim: int) -> Tensor:
    return input.log_softmax(dim)


__all__ = [
    "cross_entropy",
    "dropout",
    "linear",
    "log_softmax",
    "mse_loss",
    "relu",
    "sigmoid",
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
    "self_attention",
    "silu",
    "softplus",
    "zero_pad2d",
]
