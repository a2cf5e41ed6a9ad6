"""What is being minimised: a model and its loss on one batch, for training and for evaluation. Knows no ranks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ddp_bp.data.batches import Batch
from ddp_bp.engine import Tensor, no_grad, tensor
from ddp_bp.nn import Module
from ddp_bp.nn.losses import Loss


class Total(NamedTuple):
    """Sums over one batch: the loss, the number that it is averaged over, and right answers (0 for regression)."""

    loss: Tensor
    weight: float
    correct: float


class Objective:
    """A model with the loss that it is trained on."""

    def __init__(self, model: Module, loss: Loss, *, counts_correct: bool) -> None:
        """`counts_correct`: whether targets are classes, so that the largest output is an answer."""
        self.model, self._loss, self._counts_correct = model, loss, counts_correct

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

    def _total(self, batch: Batch) -> Total:
        output = self.model(tensor(batch.inputs))
        loss, weight = self._loss.total(output, tensor(batch.targets))
        correct = 0.0
        if self._counts_correct:
            correct = float(np.count_nonzero(output.numpy().argmax(axis=-1) == batch.targets))
        return Total(loss, weight, correct)
