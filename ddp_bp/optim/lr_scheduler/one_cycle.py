"""The one-cycle policy: the learning rate goes up and down once, and momentum the other way round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ddp_bp.errors import InputError
from ddp_bp.optim.lr_scheduler.schedule import LRScheduler, check_argument, is_count, per_group
from ddp_bp.optim.optimizer import Optimizer
from ddp_bp.optim.settings import INITIAL_LR


class _Turn(NamedTuple):
    """The rates and momenta of one group at the turning points of the cycle."""

    initial_lr: float
    max_lr: float
    min_lr: float
    base_momentum: float
    max_momentum: float


class OneCycleLR(LRScheduler):
    """From max_lr / div_factor up to `max_lr`, then down to max_lr / div_factor / final_div_factor (Smith, 2018).

    It ends after `total_steps`, or `epochs` * `steps_per_epoch`, and rises during the first `pct_start` of them. With
    `three_phase` it comes down to where it began first, as fast as it rose. With `cycle_momentum`, `momentum`, or the
    first of `betas`, goes from `max_momentum` to `base_momentum` and back. `anneal_strategy` is "cos" or "linear".
    `max_lr`, `base_momentum` and `max_momentum` may be lists of one value for each group.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        self.total_steps = self._length(total_steps, epochs, steps_per_epoch)
        check_argument(0.0 <= pct_start <= 1.0, self, "pct_start", "a number in [0, 1]", pct_start)
        check_argument(
            anneal_strategy in ("cos", "linear"), self, "anneal_strategy", "'cos' or 'linear'", anneal_strategy
        )
        check_argument(div_factor > 0, self, "div_factor", "a number above 0", div_factor)
        check_argument(final_div_factor > 0, self, "final_div_factor", "a number above 0", final_div_factor)
        self._anneal = _cosine if anneal_strategy == "cos" else _line
        self._momentum = next((key for key in ("betas", "momentum") if key in optimizer.defaults), None)
        if not cycle_momentum:
            self._momentum = None
        elif self._momentum is None:
            raise InputError(
                f"OneCycleLR: {type(optimizer).__name__} has neither momentum nor betas; give cycle_momentum=False"
            )
        self._turns = [
            _Turn(top / div_factor, top, top / div_factor / final_div_factor, low, high)
            for top, low, high in zip(
                per_group("max_lr", max_lr, optimizer),
                per_group("base_momentum", base_momentum, optimizer),
                per_group("max_momentum", max_momentum, optimizer),
                strict=True,
            )
        ]
        top = pct_start * self.total_steps - 1.0
        end = self.total_steps - 1.0
        # The steps at which the phases end, with the names of what the rate and the momentum are then.
        self._phases = [(top, "max_lr", "base_momentum"), (end, "min_lr", "max_momentum")]
        if three_phase:
            self._phases.insert(1, (2.0 * top, "initial_lr", "max_momentum"))
        for group, turn in zip(optimizer.param_groups, self._turns, strict=True):
            group[INITIAL_LR] = turn.initial_lr
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> list[float]:
        return [rate for rate, _ in self._at(step)]

    def momenta(self, step: int) -> list[float]:
        """What `momentum`, or the first of `betas`, is at `step` for each group, if it is cycled."""
        return [momentum for _, momentum in self._at(step)]

    def apply(self, step: int) -> None:
        super().apply(step)
        if self._momentum is None:
            return
        for group, momentum in zip(self.optimizer.param_groups, self.momenta(step), strict=True):
            group[self._momentum] = momentum if self._momentum == "momentum" else (momentum, *group["betas"][1:])

    def _at(self, step: int) -> list[tuple[float, float]]:
        if step > self.total_steps:
            raise InputError(f"OneCycleLR: step {step} is beyond the {self.total_steps} steps of the cycle")
        start, from_lr, from_momentum = 0.0, "initial_lr", "max_momentum"
        for end, to_lr, to_momentum in self._phases[:-1]:
            if step <= end:
                break
            start, from_lr, from_momentum = end, to_lr, to_momentum
        else:
            end, to_lr, to_momentum = self._phases[-1]
        # A loop that steps once after each of total_steps ends one step beyond the last: nothing changes there.
        share = min(1.0, (step - start) / (end - start)) if end > start else 1.0
        return [
            (
                self._anneal(getattr(turn, from_lr), getattr(turn, to_lr), share),
                self._anneal(getattr(turn, from_momentum), getattr(turn, to_momentum), share),
            )
            for turn in self._turns
        ]

    def _length(self, total_steps: int | None, epochs: int | None, steps_per_epoch: int | None) -> int:
        given = {"total_steps": total_steps} if total_steps is not None else {}
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise InputError("OneCycleLR takes either total_steps, or epochs and steps_per_epoch")
            given = {"epochs": epochs, "steps_per_epoch": steps_per_epoch}
        for name, value in given.items():
            check_argument(is_count(value), self, name, "a whole number of at least 1", value)
        return math.prod(given.values())


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1.0)


def _line(start: float, end: float, share: float) -> float:
    return (end - start) * share + start
