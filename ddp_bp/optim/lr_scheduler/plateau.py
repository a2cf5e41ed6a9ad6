"""Lower rates when a measured value stops getting better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

from ddp_bp.optim.lr_scheduler.schedule import check_argument, check_keys, per_group
from ddp_bp.optim.optimizer import Optimizer

_KEPT = ("last_epoch", "best", "num_bad_epochs", "cooldown_counter")


class ReduceLROnPlateau:
    """Multiplies the rates by `factor` after more than `patience` calls of `step(metrics)` without a better value.

    Better is, with `mode` "min", a value below best * (1 - threshold) if `threshold_mode` is "rel" and below
    best - threshold if it is "abs"; with "max", above best * (1 + threshold) or best + threshold. After a reduction,
    `cooldown` calls are not counted. Rates do not go below `min_lr`, one value or a list of one for each group, and
    reductions of at most `eps` are left out.

    On several ranks, all must give the same value, bit for bit. It depends on what was measured, so its state has to be
    saved.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        check_argument(mode in ("min", "max"), self, "mode", "'min' or 'max'", mode)
        check_argument(0.0 <= factor < 1.0, self, "factor", "a number in [0, 1)", factor)
        check_argument(threshold_mode in ("rel", "abs"), self, "threshold_mode", "'rel' or 'abs'", threshold_mode)
        self.optimizer = optimizer
        self.mode, self.threshold, self.threshold_mode = mode, threshold, threshold_mode
        self.factor, self.patience, self.cooldown, self.eps = factor, patience, cooldown, eps
        self.min_lrs: list[float] = per_group("min_lr", min_lr, optimizer)
        self.best = math.inf if mode == "min" else -math.inf
        self.last_epoch = self.num_bad_epochs = self.cooldown_counter = 0

    def step(self, metrics: SupportsFloat) -> None:
        """Takes the value measured after another epoch, and reduces the rates if it is time to."""
        value = float(metrics)
        self.last_epoch += 1
        if self.is_better(value):
            self.best = value
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self._reduce()
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0

    def is_better(self, value: float) -> bool:
        """Whether `value` is better than the best so far; NaN never is."""
        sign = 1.0 if self.mode == "max" else -1.0
        if self.threshold_mode == "rel":
            bar = self.best * (1.0 + sign * self.threshold)
        else:
            bar = self.best + sign * self.threshold
        return value > bar if self.mode == "max" else value < bar

    def get_last_lr(self) -> list[float]:
        """The current rates, one per group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The counts, the best value and "lrs", the current rates, as Python's numbers."""
        return {key: getattr(self, key) for key in _KEPT} | {"lrs": self.get_last_lr()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave, and sets its rates. Raises InputError if it does not fit."""
        check_keys(self, state, (*_KEPT, "lrs"))
        rates = per_group("lrs", list(state["lrs"]), self.optimizer)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.best = float(state["best"])
        self.last_epoch, self.num_bad_epochs = int(state["last_epoch"]), int(state["num_bad_epochs"])
        self.cooldown_counter = int(state["cooldown_counter"])

    def _reduce(self) -> None:
        for group, least in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
            rate = max(group["lr"] * self.factor, least)
            if group["lr"] - rate > self.eps:
                group["lr"] = rate
