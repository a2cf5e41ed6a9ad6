"""Losses as modules. Each also gives its total and the number of elements in it.

A mean over ranks of unequal means is not the mean over the samples. Ranks add totals and counts and divide once.
"""

from __future__ import annotations

from ddp_bp.engine.functional import check_reduction
from ddp_bp.engine.ops.operation import Array
from ddp_bp.engine.tensor import Tensor
from ddp_bp.nn import functional
from ddp_bp.nn.module import Module


class Loss(Module):
    """Base of the losses; `reduction` is "mean", "sum" or "none"."""

    def __init__(self, reduction: str = "mean") -> None:
        check_reduction(type(self).__name__, reduction)
        self.reduction = reduction

    def total(self, output: Tensor, target: Tensor | Array) -> tuple[Tensor, float]:
        """The sum, of shape (), over the elements that the mean is taken of, and their number: mean = sum / number."""
        raise NotImplementedError(f"{type(self).__name__} defines no total")


class CrossEntropyLoss(Loss):
    """The negative log-likelihood of class numbers (N,) under the softmax of logits (N, C). Counts samples."""

    def forward(self, input: Tensor, target: Tensor | Array) -> Tensor:
        return functional.cross_entropy(input, target, reduction=self.reduction)

    def total(self, output: Tensor, target: Tensor | Array) -> tuple[Tensor, float]:
        return functional.cross_entropy(output, target, reduction="sum"), float(output.shape[0])


class MSELoss(Loss):
    """The squared differences of an output and a target of one shape. Counts elements."""

    def forward(self, input: Tensor, target: Tensor | Array) -> Tensor:
        return functional.mse_loss(input, target, reduction=self.reduction)

    def total(self, output: Tensor, target: Tensor | Array) -> tuple[Tensor, float]:
        return functional.mse_loss(output, target, reduction="sum"), float(output.numel())
