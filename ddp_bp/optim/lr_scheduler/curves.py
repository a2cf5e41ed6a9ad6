"""Schedules that are one formula of the step; PyTorch's closed forms."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

from ddp_bp.optim.lr_scheduler.schedule import Curve, LRScheduler, check_argument, is_count, per_group
from ddp_bp.optim.optimizer import Optimizer


class LambdaLR(LRScheduler):
    """base_lr * lr_lambda(step), with one function for all groups or a list of one for each."""

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        self.lr_lambdas: list[Callable[[int], float]] = per_group("lr_lambda", lr_lambda, optimizer)
        super().__init__(optimizer, last_epoch)

    def rates(self, step: int) -> list[float]:
        return [base_lr * factor(step) for base_lr, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]


class ConstantLR(Curve):
    """base_lr * factor before step `total_iters`, base_lr from then on."""

    def __init__(
        self, optimizer: Optimizer, factor: float = 1.0 / 3, total_iters: int = 5, last_epoch: int = -1
    ) -> None:
        check_argument(0.0 <= factor <= 1.0, self, "factor", "a number in [0, 1]", factor)
        self.factor, self.total_iters = factor, total_iters
        super().__init__(optimizer, last_epoch)

    def rate(self, step: int, base_lr: float) -> float:
        return base_lr if step >= self.total_iters else base_lr * self.factor


class StepLR(Curve):
    """base_lr * gamma ** (step // step_size)."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1) -> None:
        check_argument(is_count(step_size), self, "step_size", "a whole number of at least 1", step_size)
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, step: int, base_lr: float) -> float:
        return base_lr * math.pow(self.gamma, step // self.step_size)


class MultiStepLR(Curve):
    """base_lr * gamma ** (how many of `milestones` have been reached)."""

    def __init__(
        self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.milestones = sorted(milestones)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, step: int, base_lr: float) -> float:
        return base_lr * math.pow(self.gamma, bisect_right(self.milestones, step))


class ExponentialLR(Curve):
    """base_lr * gamma ** step."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, step: int, base_lr: float) -> float:
        return base_lr * math.pow(self.gamma, step)


class LinearLR(Curve):
    """base_lr times a factor that goes in a line from `start_factor` to `end_factor` in `total_iters` steps."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        check_argument(0.0 < start_factor <= 1.0, self, "start_factor", "a number in (0, 1]", start_factor)
        check_argument(0.0 <= end_factor <= 1.0, self, "end_factor", "a number in [0, 1]", end_factor)
        check_argument(is_count(total_iters), self, "total_iters", "a whole number of at least 1", total_iters)
        self.start_factor, self.end_factor, self.total_iters = start_factor, end_factor, total_iters
        super().__init__(optimizer, last_epoch)

    def rate(self, step: int, base_lr: float) -> float:
        share = min(step, self.total_iters) / self.total_iters
        return base_lr * (self.start_factor + (self.end_factor - self.start_factor) * share)


class PolynomialLR(Curve):
    """base_lr * (1 - step / total_iters) ** power, and 0 from step `total_iters` on."""

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1) -> None:
        check_argument(is_count(total_iters), self, "total_iters", "a whole number of at least 1", total_iters)
        check_argument(power >= 0.0, self, "power", "a number of at least 0", power)
        self.total_iters, self.power = total_iters, power
        super().__init__(optimizer, last_epoch)

    def rate(self, step: int, base_lr: float) -> float:
        return base_lr * math.pow(1.0 - min(step, self.total_iters) / self.total_iters, self.power)


class CosineAnnealingLR(Curve):
    """Half a cosine from base_lr to `eta_min` in `T_max` steps; beyond them the wave goes on, as in PyTorch.

    (Loshchilov and Hutter, 2017, without restarts.)
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> None:  # noqa: N803
        check_argument(is_count(T_max), self, "T_max", "a whole number of at least 1", T_max)
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer, last_epoch)

    def rate(self, step: int, base_lr: float) -> float:
        return self.eta_min + (base_lr - self.eta_min) * (1.0 + math.cos(math.pi * step / self.T_max)) / 2


class CosineWarmupLR(Curve):
    """Warm-up in a line to base_lr at step `warmup_steps`, then half a cosine to `eta_min` at step `total_steps`.

    The first rate is base_lr / (warmup_steps + 1), so that no step is lost, and `eta_min` is kept at the end. PyTorch
    has no schedule of this name; there it is a SequentialLR of LinearLR and CosineAnnealingLR.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        total_steps: int,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        check_argument(is_count(warmup_steps, 0), self, "warmup_steps", "a whole number of at least 0", warmup_steps)
        expected = f"a whole number above warmup_steps={warmup_steps}"
        check_argument(is_count(total_steps, warmup_steps + 1), self, "total_steps", expected, total_steps)
        self.warmup_steps, self.total_steps, self.eta_min = warmup_steps, total_steps, eta_min
        super().__init__(optimizer, last_epoch)

    def rate(self, step: int, base_lr: float) -> float:
        if step < self.warmup_steps:
            return base_lr * (step + 1) / (self.warmup_steps + 1)
        share = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.eta_min + (base_lr - self.eta_min) * (1.0 + math.cos(math.pi * share)) / 2
