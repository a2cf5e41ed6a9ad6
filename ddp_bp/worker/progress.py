"""How far a run has come: numbers that every rank holds alike, and that a checkpoint carries across a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ddp_bp.checkpoint import Manifest
from ddp_bp.worker.evaluation import EvaluationResult


@dataclass
class Progress:
    """Counts are over the whole run, all restarts included. Epoch sums are over the current epoch so far.

    `schedule`: the state of the learning rate's schedule, where it has one.
    """

    step: int = 0
    samples: int = 0
    epoch_loss: float = 0.0
    epoch_weight: float = 0.0
    epoch_correct: float = 0.0
    epoch_answers: float = 0.0
    last_train_loss: float | None = None
    eval_loss: float | None = None
    eval_accuracy: float | None = None
    evaluated_at_step: int | None = None
    schedule: dict[str, Any] | None = None

    def commit(
        self,
        loss: float,
        weight: float,
        correct: float,
        num_samples: int,
        num_answers: float,
        *,
        first_in_epoch: bool,
    ) -> None:
        """Count one committed step with the sums of its global batch; `correct` of its `num_answers` are right."""
        if first_in_epoch:
            self.epoch_loss = self.epoch_weight = self.epoch_correct = 0.0
            self.epoch_answers = 0.0
        self.step += 1
        self.samples += num_samples
        self.epoch_loss += loss
        self.epoch_weight += weight
        self.epoch_correct += correct
        self.epoch_answers += num_answers
        self.last_train_loss = self.epoch_loss / self.epoch_weight if self.epoch_weight else None

    def evaluated(self, result: EvaluationResult) -> None:
        """Note the result of an evaluation after the current step."""
        self.eval_loss, self.eval_accuracy = result.loss, result.accuracy
        self.evaluated_at_step = self.step

    @property
    def train_accuracy(self) -> float | None:
        """Share of right answers in the current epoch so far, None before its first step."""
        return self.epoch_correct / self.epoch_answers if self.epoch_answers else None

    def extra(self) -> dict[str, Any]:
        """What a manifest has no field of its own for, as plain JSON values that read back to the same bits."""
        return {name: getattr(self, name) for name in _EXTRA}

    @classmethod
    def of(cls, manifest: Manifest) -> Progress:
        """The progress that a checkpoint was made at."""
        return cls(
            step=manifest.step,
            samples=manifest.samples,
            last_train_loss=manifest.train_loss,
            eval_loss=manifest.eval_loss,
            eval_accuracy=manifest.eval_accuracy,
            **{name: manifest.extra[name] for name in _EXTRA if name in manifest.extra},
        )


_EXTRA = ("epoch_loss", "epoch_weight", "epoch_correct", "epoch_answers", "evaluated_at_step", "schedule")
