"""Optimizers over flat vectors, with PyTorch's names, arguments and defaults."""

from __future__ import annotations

from ddp_bp.optim.adam import Adam, AdamW
from ddp_bp.optim.optimizer import Optimizer
from ddp_bp.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimizer"]
