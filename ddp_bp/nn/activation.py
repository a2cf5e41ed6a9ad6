"""Elementwise activations as modules."""

from __future__ import annotations

from ddp_bp.engine.tensor import Tensor
from ddp_bp.nn.module import Module


class ReLU(Module):
    def forward(self, input: Tensor) -> Tensor:
        return input.relu()


class Tanh(Module):
    def forward(self, input: Tensor) -> Tensor:
        return input.tanh()


class Sigmoid(Module):
    def forward(self, input: Tensor) -> Tensor:
        return input.sigmoid()
