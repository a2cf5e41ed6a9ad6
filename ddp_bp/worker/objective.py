"""What is being minimised: a model and its loss on one batch, for training and for evaluation. Knows no ranks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ddp_bp.data.batches import Batch
from ddp_bp.engine import Tensor, no_grad
from ddp_bp.nn import Module
from ddp_bp.nn.losses import Loss


class Total(NamedTuple):
    """Sums over one batch: the loss, the number that it is averaged over, and right answers (0 for regression)."""

    loss: Tensor
    weight: float
    correct: float


class Objective:
    """A model with the loss that it is trained on.

    The model gives (N, C) for classes (N,), (N, T, C) for texts, whose targets are (N, T), or (N, K) for values.
    """

    def __init__(self, model: Module, loss: Loss, *, counts_correct: bool, answers_per_sample: int = 1) -> None:
        """`counts_correct`: whether targets are classes, so that the largest output is an answer.

        `answers_per_sample`: the number T of targets of a sample, each of which is an answer of its own.
        """
        self.model, self._loss, self._counts_correct = model, loss, counts_correct
        self._answers_per_sample = answers_per_sample
        # PyTorch's default, which is no class, ignores nothing.
        self._ignored = max(-1, getattr(loss, "ignore_index", -1))
        self._is_weighted = getattr(loss, "weight", None) is not None

    def train(self, batch: Batch) -> Total:
        """Forward pass in training mode, recorded for backward."""
        # Walking the module tree costs as much as a small layer, so the mode is set only where it changes.
        if not self.model.training:
            self.model.train()
        return self._total(batch)

    def evaluate(self, batch: Batch) -> Total:
        """Forward pass in evaluation mode, not recorded."""
        if self.model.training:
            self.model.eval()
        with no_grad():
            return self._total(batch)

    def num_answers(self, num_samples: int, weight: float) -> float:
        """Of how many answers `correct` counts the right ones, over batches whose sums these are.

        Where classes have no weights, what the loss is averaged over is this number, without targets that are ignored.
        (A recipe has either weights or a class to ignore.)
        """
        return float(num_samples * self._answers_per_sample) if self._is_weighted else weight

    def _total(self, batch: Batch) -> Total:
        # A batch is ours alone, so that its arrays can be used as they are.
        output, targets = self.model(Tensor(batch.inputs)), batch.targets
        if not self._counts_correct:
            return Total(*self._loss.total(output, Tensor(targets)), 0.0)
        if targets.ndim > 1:
            output, targets = output.reshape(-1, output.shape[-1]), targets.reshape(-1)
        loss, weight = self._loss.total(output, Tensor(targets))
        right = output.numpy().argmax(axis=-1) == targets
        if self._ignored >= 0:
            right &= targets != self._ignored
        return Total(loss, weight, float(np.count_nonzero(right)))
