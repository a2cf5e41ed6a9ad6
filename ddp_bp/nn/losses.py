"""Losses as modules. Each also gives its total and the number that its mean divides by.

A mean over ranks of unequal means is not the mean over the samples. Ranks add totals and counts and divide once.
"""

from __future__ import annotations

from ddp_bp.engine.functional import as_tensor, check_reduction
from ddp_bp.engine.functional_losses import is_probability
from ddp_bp.engine.ops.classification import class_count
from ddp_bp.engine.ops.operation import Array
from ddp_bp.engine.tensor import Tensor
from ddp_bp.errors import InputError
from ddp_bp.nn import functional
from ddp_bp.nn.module import Buffer, Module


class Loss(Module):
    """Base of the losses; `reduction` is "mean", "sum" or "none"."""

    def __init__(self, reduction: str = "mean") -> None:
        check_reduction(type(self).__name__, reduction)
        self.reduction = reduction

    def total(self, output: Tensor, target: Tensor | Array) -> tuple[Tensor, float]:
        """The sum of the losses, of shape (), and what the mean divides it by: mean = sum / number.

        Adding sums and numbers over any parts of a batch and dividing once gives the mean of the batch. The module's
        own `reduction` plays no part.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no total")


def _buffer(weight: Tensor | Array | None) -> Buffer | None:
    return None if weight is None else Buffer(as_tensor(weight).numpy().copy())


class CrossEntropyLoss(Loss):
    """The negative log-likelihood of class numbers (N,), or of class probabilities, under the softmax of logits (N, C).

    `weight` (C,) is a buffer; see `functional.cross_entropy` for it and for more axes. Counts samples that are not
    ignored, each with the weight of its class; with probabilities, all samples.
    """

    def __init__(
        self,
        weight: Tensor | Array | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(reduction)
        if not 0.0 <= label_smoothing <= 1.0:
            raise InputError(f"CrossEntropyLoss takes a label_smoothing in [0, 1] and got {label_smoothing}")
        self.weight = _buffer(weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor | Array) -> Tensor:
        return self._loss(input, target, self.reduction)

    def total(self, output: Tensor, target: Tensor | Array) -> tuple[Tensor, float]:
        target = as_tensor(target)
        total = self._loss(output, target, "sum")
        if is_probability(output, target):
            return total, float(output.numel() // output.shape[min(output.ndim - 1, 1)])
        return total, _class_count(target, self.weight, self.ignore_index)

    def _loss(self, output: Tensor, target: Tensor | Array, reduction: str) -> Tensor:
        return functional.cross_entropy(
            output,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=reduction,
            label_smoothing=self.label_smoothing,
        )


class NLLLoss(Loss):
    """Minus the log-probabilities (N, C) of class numbers (N,). Counts as CrossEntropyLoss does."""

    def __init__(
        self, weight: Tensor | Array | None = None, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        self.weight = _buffer(weight)
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor | Array) -> Tensor:
        return self._loss(input, target, self.reduction)

    def total(self, output: Tensor, target: Tensor | Array) -> tuple[Tensor, float]:
        total = self._loss(output, target, "sum")
        return total, _class_count(as_tensor(target), self.weight, self.ignore_index)

    def _loss(self, output: Tensor, target: Tensor | Array, reduction: str) -> Tensor:
        return functional.nll_loss(output, target, self.weight, ignore_index=self.ignore_index, reduction=reduction)


def _class_count(target: Tensor, weight: Buffer | None, ignore_index: int) -> float:
    return class_count(target._array, None if weight is None else weight._array, ignore_index)


class MSELoss(Loss):
    """The squared differences of an output and a target of one shape. Counts elements."""

    def forward(self, input: Tensor, target: Tensor | Array) -> Tensor:
        return functional.mse_loss(input, target, reduction=self.reduction)

    def total(self, output: Tensor, target: Tensor | Array) -> tuple[Tensor, float]:
        return functional.mse_loss(output, target, reduction="sum"), float(output.numel())


class L1Loss(Loss):
    """The absolute differences of an output and a target of one shape. Counts elements."""

    def forward(self, input: Tensor, target: Tensor | Array) -> Tensor:
        return functional.l1_loss(input, target, reduction=self.reduction)

    def total(self, output: Tensor, target: Tensor | Array) -> tuple[Tensor, float]:
        return functional.l1_loss(output, target, reduction="sum"), float(output.numel())


class SmoothL1Loss(Loss):
    """The absolute differences, made smooth below `beta`: Huber's loss over `beta`. Counts elements."""

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        if not beta >= 0.0:
            raise InputError(f"SmoothL1Loss takes a beta that is not negative and got {beta}")
        self.beta = beta

    def forward(self, input: Tensor, target: Tensor | Array) -> Tensor:
        return functional.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)

    def total(self, output: Tensor, target: Tensor | Array) -> tuple[Tensor, float]:
        return functional.smooth_l1_loss(output, target, reduction="sum", beta=self.beta), float(output.numel())


class HuberLoss(Loss):
    """Half the squared differences, and beyond `delta` the tangent there. Counts elements."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        if not delta > 0.0:
            raise InputError(f"HuberLoss takes a delta above 0 and got {delta}")
        self.delta = delta

    def forward(self, input: Tensor, target: Tensor | Array) -> Tensor:
        return functional.huber_loss(input, target, reduction=self.reduction, delta=self.delta)

    def total(self, output: Tensor, target: Tensor | Array) -> tuple[Tensor, float]:
        return functional.huber_loss(output, target, reduction="sum", delta=self.delta), float(output.numel())


class BCEWithLogitsLoss(Loss):
    """The negative log-likelihood of probabilities under the sigmoid of logits of the same shape. Counts elements.

    `weight` and `pos_weight` are buffers that broadcast to the logits; as in PyTorch they do not change the count.
    """

    def __init__(
        self,
        weight: Tensor | Array | None = None,
        *,
        reduction: str = "mean",
        pos_weight: Tensor | Array | None = None,
    ) -> None:
        super().__init__(reduction)
        self.weight = _buffer(weight)
        self.pos_weight = _buffer(pos_weight)

    def forward(self, input: Tensor, target: Tensor | Array) -> Tensor:
        return self._loss(input, target, self.reduction)

    def total(self, output: Tensor, target: Tensor | Array) -> tuple[Tensor, float]:
        return self._loss(output, target, "sum"), float(output.numel())

    def _loss(self, output: Tensor, target: Tensor | Array, reduction: str) -> Tensor:
        return functional.binary_cross_entropy_with_logits(
            output, target, self.weight, reduction=reduction, pos_weight=self.pos_weight
        )


class KLDivLoss(Loss):
    """The divergence of log-probabilities from probabilities, or from log-probabilities with `log_target`.

    `reduction` may also be "batchmean", which divides the sum by the first side. Counts elements, and then samples.
    """

    def __init__(self, reduction: str = "mean", log_target: bool = False) -> None:
        super().__init__("mean" if reduction == "batchmean" else reduction)
        self.reduction = reduction
        self.log_target = log_target

    def forward(self, input: Tensor, target: Tensor | Array) -> Tensor:
        return functional.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)

    def total(self, output: Tensor, target: Tensor | Array) -> tuple[Tensor, float]:
        total = functional.kl_div(output, target, reduction="sum", log_target=self.log_target)
        return total, float(len(output) if self.reduction == "batchmean" else output.numel())


class CosineEmbeddingLoss(Loss):
    """Draws pairs of vectors together where the target is 1, and apart where it is -1. Counts pairs."""

    def __init__(self, margin: float = 0.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.margin = margin

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor | Array) -> Tensor:
        return self._loss(input1, input2, target, self.reduction)

    def total(  # type: ignore[override]  # A pair has two outputs.
        self, input1: Tensor, input2: Tensor, target: Tensor | Array
    ) -> tuple[Tensor, float]:
        target = as_tensor(target)
        return self._loss(input1, input2, target, "sum"), float(target.numel())

    def _loss(self, input1: Tensor, input2: Tensor, target: Tensor | Array, reduction: str) -> Tensor:
        return functional.cosine_embedding_loss(input1, input2, target, margin=self.margin, reduction=reduction)
