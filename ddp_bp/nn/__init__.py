"""Modules, losses and initialisers with PyTorch's names, arguments, defaults and parameter layout."""

from __future__ import annotations

from ddp_bp.engine import Parameter
from ddp_bp.nn import functional, init
from ddp_bp.nn.activation import ELU, GELU, LeakyReLU, LogSoftmax, ReLU, Sigmoid, SiLU, Softmax, Softplus, Tanh
from ddp_bp.nn.attention import MultiheadAttention
from ddp_bp.nn.bilinear import Bilinear
from ddp_bp.nn.containers import ModuleDict, ModuleList, Residual, Sequential
from ddp_bp.nn.convolution import Conv1d, Conv2d, ConvTranspose2d
from ddp_bp.nn.embedding import Embedding, LearnedPositionalEncoding, SinusoidalPositionalEncoding
from ddp_bp.nn.layers import Dropout, Flatten, Identity, Linear, Unflatten
from ddp_bp.nn.losses import (
    BCEWithLogitsLoss,
    CosineEmbeddingLoss,
    CrossEntropyLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    Loss,
    MSELoss,
    NLLLoss,
    SmoothL1Loss,
)
from ddp_bp.nn.module import Buffer, Module
from ddp_bp.nn.normalization import BatchNorm1d, BatchNorm2d, GroupNorm, LayerNorm, RMSNorm, SyncBatchNorm
from ddp_bp.nn.pooling import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AvgPool1d,
    AvgPool2d,
    MaxPool1d,
    MaxPool2d,
    ZeroPad2d,
)
from ddp_bp.nn.recurrent import GRU, LSTM, RNN

__all__ = [
    "BCEWithLogitsLoss",
    "Buffer",
    "CosineEmbeddingLoss",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "HuberLoss",
    "Identity",
    "KLDivLoss",
    "L1Loss",
    "Linear",
    "Loss",
    "MSELoss",
    "Module",
    "NLLLoss",
    "Parameter",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "SmoothL1Loss",
    "Tanh",
    "functional",
    "init",
    "ELU",
    "GELU",
    "LeakyReLU",
    "LogSoftmax",
    "SiLU",
    "Softmax",
    "Softplus",
    "MultiheadAttention",
    "Bilinear",
    "ModuleDict",
    "ModuleList",
    "Residual",
    "Conv1d",
    "Conv2d",
    "ConvTranspose2d",
    "Embedding",
    "LearnedPositionalEncoding",
    "SinusoidalPositionalEncoding",
    "Unflatten",
    "BatchNorm1d",
    "BatchNorm2d",
    "GroupNorm",
    "LayerNorm",
    "RMSNorm",
    "SyncBatchNorm",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "MaxPool1d",
    "MaxPool2d",
    "ZeroPad2d",
    "GRU",
    "LSTM",
    "RNN",
]
