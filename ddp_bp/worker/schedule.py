"""The learning rate of a job over its steps.

Rates are a function of the step, so that nothing has to be saved, and a resumed run has those of one that never
stopped. Only a plateau depends on what was evaluated; its state is a few numbers, which every rank holds alike.
"""

from __future__ import annotations

import math
from typing import Any

from ddp_bp.errors import InputError, RecipeError
from ddp_bp.optim import Optimizer
from ddp_bp.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from ddp_bp.recipes.optimization import ScheduleSection


def schedule_problems(section: ScheduleSection, steps_per_epoch: int) -> list[str]:
    """Every reason, one line each with its key, why lengths of `section` do not fit together in whole steps."""
    warmup = _steps(section.warmup_epochs or 0.0, steps_per_epoch)
    # A training that is cut short within its warm-up is a trial, and no mistake.
    lengths = _lengths(section, steps_per_epoch)
    if not lengths or warmup < lengths[0]:
        return []
    length = lengths[0]
    return [f"schedule.warmup_epochs: expected a warm-up shorter than the schedule, {length} steps, got {warmup} steps"]


class Schedule:
    """Sets the rates of an optimizer."""

    def __init__(self, section: ScheduleSection, optimizer: Optimizer, steps_per_epoch: int) -> None:
        """Raises RecipeError if the lengths do not fit together, or the schedule does not fit the optimizer."""
        if problems := schedule_problems(section, steps_per_epoch):
            raise RecipeError("recipe", problems)
        self._section, self._optimizer, self._steps_per_epoch = section, optimizer, steps_per_epoch
        self._length = min(_lengths(section, steps_per_epoch), default=None)
        self._curve: LRScheduler | None = None
        self._plateau: ReduceLROnPlateau | None = None
        try:
            if section.name == "plateau":
                self._plateau = ReduceLROnPlateau(optimizer, **section.arguments())
            else:
                self._curve = self._after_warmup(self._warmup_steps())
        except InputError as error:
            raise RecipeError("schedule", [str(error)]) from error

    def apply(self, step: int) -> None:
        """Set the rates of step `step`, counted from 0; those of a plateau stay as they are."""
        if self._curve is not None:
            self._curve.apply(step if self._length is None else min(step, self._length))

    def end_before(self, total_steps: int) -> tuple[int, float] | None:
        """(step, rate) where the curve ends within so many steps, and the rate that stays from there on, else None.

        The rates are to be set anew afterwards, as every step does.
        """
        if self._curve is None or self._length is None or self._length >= total_steps:
            return None
        self.apply(self._length)
        return self._length, self._optimizer.lr

    def evaluated(self, loss: float) -> None:
        """Take note of the evaluation loss at the end of an epoch."""
        if self._plateau is not None:
            self._plateau.step(loss)

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint must keep, as JSON values that read back to the same bits; None if there is nothing."""
        if self._plateau is None:
            return None
        state = self._plateau.state_dict()
        # JSON has no infinity, which is the best value before the first evaluation.
        return {**state, "best": state["best"] if math.isfinite(state["best"]) else None}

    def restore(self, state: dict[str, Any] | None, step: int) -> None:
        """Go on at step `step` from what `state` gave."""
        if self._plateau is not None and state is not None:
            self._plateau.load_state_dict({**state, "best": math.inf if state["best"] is None else state["best"]})
        self.apply(step)

    def _after_warmup(self, warmup: int) -> LRScheduler | None:
        """The whole curve: `warmup` steps in a line from base / (warmup + 1), so that no step is lost, then its own."""
        if not warmup:
            return self._own_curve(0)
        rise = LinearLR(self._optimizer, start_factor=1.0 / (warmup + 1), total_iters=warmup)
        rest = self._own_curve(warmup) or ConstantLR(self._optimizer, factor=1.0)
        return SequentialLR(self._optimizer, [rise, rest], [warmup])

    def _own_curve(self, warmup: int) -> LRScheduler | None:
        """The curve that begins after `warmup` steps, None if it is a constant one."""
        optimizer, section = self._optimizer, self._section
        lengths = ("epochs", "max_steps", "warmup_epochs", "step_epochs", "milestones")
        arguments = {key: value for key, value in section.arguments().items() if key not in lengths}
        length = 0 if self._length is None else self._length - warmup
        match section.name:
            case "step":
                return StepLR(optimizer, step_size=max(1, self._steps(section.step_epochs or 0.0)), **arguments)
            case "multi_step":
                # At least one step with the whole rate, also where a milestone is less than half a step.
                milestones = [max(1, self._steps(epochs) - warmup) for epochs in section.milestones or ()]
                return MultiStepLR(optimizer, milestones, **arguments)
            case "cosine":
                return CosineAnnealingLR(optimizer, length, **arguments)
            case "linear":
                return LinearLR(optimizer, total_iters=length, **arguments)
            case "polynomial":
                return PolynomialLR(optimizer, total_iters=length, **arguments)
            case "one_cycle":
                cycles = arguments.pop("cycle_momentum", None)
                settings = optimizer.defaults
                has_momentum = "betas" in settings or settings.get("momentum", 0.0) > 0.0
                return OneCycleLR(
                    optimizer,
                    max_lr=optimizer.lr,
                    total_steps=length,
                    cycle_momentum=has_momentum if cycles is None else cycles,
                    **arguments,
                )
            case _:
                return None

    def _warmup_steps(self) -> int:
        """The warm-up; of a training that is cut short before its end, all but one step."""
        warmup = self._steps(self._section.warmup_epochs or 0.0)
        return warmup if self._length is None else min(warmup, self._length - 1)

    def _steps(self, epochs: float) -> int:
        return _steps(epochs, self._steps_per_epoch)


def _lengths(section: ScheduleSection, steps_per_epoch: int) -> list[int]:
    """How many steps a curve may have, by `epochs` and by `max_steps`; the lower one counts. Empty if it has no end."""
    lengths = [] if section.epochs is None else [max(1, _steps(section.epochs, steps_per_epoch))]
    return lengths if section.max_steps is None else [*lengths, section.max_steps]


def _steps(epochs: float, steps_per_epoch: int) -> int:
    return round(epochs * steps_per_epoch)
