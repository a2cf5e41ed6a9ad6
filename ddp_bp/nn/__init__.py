"""Modules, losses and initialisers with PyTorch's names, arguments, defaults and parameter layout."""

from __future__ import annotations

from ddp_bp.engine import Parameter
from ddp_bp.nn import functional, init
from ddp_bp.nn.activation import ReLU, Sigmoid, Tanh
from ddp_bp.nn.containers import Sequential
from ddp_bp.nn.layers import Dropout, Flatten, Identity, Linear
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
]
