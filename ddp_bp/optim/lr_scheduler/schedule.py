"""The base of the schedules: learning rates as a pure function of the step.

Because of that a job that knows its step knows its rates: nothing has to be saved, and a resumed run cannot drift.
PyTorch multiplies the current rate step by step instead, so that two of its schedules can act on one optimizer; here
the last one to set a rate has its way, and `SequentialLR` or `LambdaLR` combine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ddp_bp.errors import InputError
from ddp_bp.optim.optimizer import Optimizer
from ddp_bp.optim.settings import INITIAL_LR


class LRScheduler(ABC):
    """Base of the schedules. Making one sets the rates of step `last_epoch` + 1, so by default those of step 0.

    `base_lrs` are the rates of the groups when the optimizer's first schedule was made. `last_epoch` counts the calls
    of `step`, whether they are made once per epoch or once per optimizer step.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        self.optimizer = optimizer
        self.base_lrs: list[float] = [group.setdefault(INITIAL_LR, group["lr"]) for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self.apply(last_epoch + 1)

    @abstractmethod
    def rates(self, step: int) -> list[float]:
        """The learning rate of each group at `step` = 0, 1, ... Changes nothing."""

    def apply(self, step: int) -> None:
        """Gives the groups what this schedule says for `step`, from which `step()` then goes on."""
        rates = self.rates(step)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.last_epoch = step

    def step(self) -> None:
        """Goes on to the next step. Call it after the optimizer's."""
        self.apply(self.last_epoch + 1)

    def get_last_lr(self) -> list[float]:
        """The rates that were set last, one per group."""
        return self.rates(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """{"last_epoch": int}. The arguments are not part of it: a script gives them anew."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave, and sets the rates of that step. InputError if it does not fit."""
        check_keys(self, state, ("last_epoch",))
        self.apply(int(state["last_epoch"]))


class Curve(LRScheduler):
    """A schedule whose rates follow from the step and each group's own base rate."""

    @abstractmethod
    def rate(self, step: int, base_lr: float) -> float:
        """The rate at `step` of a group whose rate was `base_lr`."""

    def rates(self, step: int) -> list[float]:
        return [self.rate(step, base_lr) for base_lr in self.base_lrs]


def check_keys(schedule: object, state: Mapping[str, Any], keys: Sequence[str]) -> None:
    if set(state) != set(keys):
        raise InputError(
            f"the state does not fit this {type(schedule).__name__}: expected {', '.join(keys)}, "
            f"got {', '.join(map(str, state)) or 'nothing'}"
        )


def per_group(name: str, value: Any, optimizer: Optimizer) -> list[Any]:
    """`value` for each group: the same, or one each if it is a list. InputError if their number is another."""
    num_groups = len(optimizer.param_groups)
    if not isinstance(value, (list, tuple)):
        return [value] * num_groups
    if len(value) != num_groups:
        raise InputError(f"{name} has {len(value)} values for {num_groups} parameter groups")
    return list(value)


def check_argument(ok: bool, schedule: object, name: str, expected: str, got: object) -> None:
    if not ok:
        raise InputError(f"{type(schedule).__name__} takes {expected} for {name} and got {got!r}")


def is_count(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
