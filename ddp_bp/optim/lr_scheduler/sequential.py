"""Schedules one after another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from ddp_bp.errors import InputError
from ddp_bp.optim.lr_scheduler.schedule import LRScheduler
from ddp_bp.optim.optimizer import Optimizer


class SequentialLR(LRScheduler):
    """The first of `schedulers` until step `milestones[0]`, where the second begins with its own step 0, and so on.

    All have the rates of the optimizer at the time when the first of them was made as their base.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        last_epoch: int = -1,
    ) -> None:
        if not schedulers or len(milestones) != len(schedulers) - 1:
            raise InputError(
                f"SequentialLR takes one milestone less than schedules, and got {len(schedulers)} schedules "
                f"and {len(milestones)} milestones"
            )
        if list(milestones) != sorted(milestones) or any(milestone < 0 for milestone in milestones):
            raise InputError(f"SequentialLR takes ascending milestones and got {list(milestones)}")
        given: Sequence[Any] = schedulers
        for position, scheduler in enumerate(given):
            if not isinstance(scheduler, LRScheduler):
                what = type(scheduler).__name__
                raise InputError(f"SequentialLR takes schedules of the step alone, and schedule {position} is a {what}")
            if scheduler.optimizer is not optimizer:
                raise InputError(f"SequentialLR: schedule {position} is for another optimizer")
        self.schedulers, self.milestones = tuple(schedulers), tuple(milestones)
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> list[float]:
        scheduler, own_step = self._at(step)
        return scheduler.rates(own_step)

    def apply(self, step: int) -> None:
        # Through the schedule itself, which may set more than rates.
        scheduler, own_step = self._at(step)
        scheduler.apply(own_step)
        self.last_epoch = step

    def _at(self, step: int) -> tuple[LRScheduler, int]:
        number = bisect_right(self.milestones, step)
        return self.schedulers[number], step - (self.milestones[number - 1] if number else 0)
