"""How far a run has come: numbers that every rank holds alike, and that a checkpoint carries across a restart."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ddp_bp.checkpoint import Manifest
from ddp_bp.worker.evaluation import EvaluationResult


@dataclass
class Progress:
    """Counts are over the whole run, all restarts included. Epoch sums are over the current epoch so far.

    `schedule`: the state of the learning rate's schedule, where it has one. `skipped_steps`: how many steps changed
    nothing because a loss or gradient was not finite; `skips_in_a_row`: of these the last ones without a break, and
    `first_skip_shard`: the shard in the first of them that was the cause.
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
    skipped_steps: int = 0
    skips_in_a_row: int = 0
    first_skip_shard: int | None = None

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
        self._count(num_samples, first_in_epoch=first_in_epoch)
        self.skips_in_a_row, self.first_skip_shard = 0, None
        self.epoch_loss += loss
        self.epoch_weight += weight
        self.epoch_correct += correct
        self.epoch_answers += num_answers
        self.last_train_loss = self.epoch_loss / self.epoch_weight if self.epoch_weight else None

    def skip(self, num_samples: int, shard: int, *, first_in_epoch: bool) -> None:
        """Count one step that was committed without a change, because `shard` gave what is not finite."""
        if not self.skips_in_a_row:
            self.first_skip_shard = shard
        self.skips_in_a_row += 1
        self.skipped_steps += 1
        self._count(num_samples, first_in_epoch=first_in_epoch)

    def _count(self, num_samples: int, *, first_in_epoch: bool) -> None:
        if first_in_epoch:
            self.epoch_loss = self.epoch_weight = self.epoch_correct = 0.0
            self.epoch_answers = 0.0
        self.step += 1
        self.samples += num_samples

    @property
    def updates(self) -> int:
        """How many steps have changed the parameters."""
        return self.step - self.skipped_steps

    def evaluated(self, result: EvaluationResult) -> None:
        """Note the result of an evaluation after the current step."""
        self.eval_loss, self.eval_accuracy = result.loss, result.accuracy
        self.evaluated_at_step = self.step

    @property
    def train_accuracy(self) -> float | None:
        """Share of right answers in the current epoch so far, None before its first step."""
        return self.epoch_correct / self.epoch_answers if self.epoch_answers else None

    def line(self, epochs: int, num_epochs: int) -> str:
        """For people, after `epochs` of `num_epochs`."""
        parts = [f"epoch {epochs}/{num_epochs}", f"step {self.step}"]
        if self.last_train_loss is not None:
            parts.append(f"loss {self.last_train_loss:.4f}")
        if self.eval_loss is not None:
            parts.append(f"eval loss {self.eval_loss:.4f}")
        if self.eval_accuracy is not None:
            parts.append(f"eval accuracy {self.eval_accuracy:.2%}")
        return "  ".join(parts)

    def become(self, other: Progress) -> None:
        """Stand where `other` stands."""
        for each in fields(self):
            setattr(self, each.name, getattr(other, each.name))

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


_EXTRA = (
    "epoch_loss",
    "epoch_weight",
    "epoch_correct",
    "epoch_answers",
    "evaluated_at_step",
    "schedule",
    "skipped_steps",
    "skips_in_a_row",
    "first_skip_shard",
)
