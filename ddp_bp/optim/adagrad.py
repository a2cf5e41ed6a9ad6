"""Adagrad and Adadelta, after torch.optim."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ddp_bp.optim.block import Block
from ddp_bp.optim.optimizer import Optimizer, Rule, decay
from ddp_bp.optim.settings import Check, Params, flag, fraction, non_negative
from ddp_bp.optim.state import Allocate


class Adagrad(Optimizer):
    """Per element at step t = 1, 2, ..., with g = gradient + weight_decay * p (Duchi et al., 2011):

    sum += g**2, beginning with initial_accumulator_value
    p   -= lr / (1 + (t - 1) * lr_decay) * g / (sqrt(sum) + eps)
    """

    checks: ClassVar[Mapping[str, Check]] = MappingProxyType(
        {
            "lr": non_negative,
            "lr_decay": non_negative,
            "weight_decay": non_negative,
            "initial_accumulator_value": non_negative,
            "eps": non_negative,
            "maximize": flag,
        }
    )
    state_names: ClassVar[tuple[str, ...]] = ("sum",)
    can_resume: ClassVar[bool] = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        allocate: Allocate | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
            "maximize": maximize,
        }
        super().__init__(params, defaults, allocate)
        for first, last, number in self._segments:
            # Writing zeros again would map pages that this rank may never need.
            if initial := self.param_groups[number]["initial_accumulator_value"]:
                self.state["sum"][first:last] = initial

    def _step_rule(self, settings: Mapping[str, Any]) -> Rule:
        lr = settings["lr"] / (1.0 + self.num_steps * settings["lr_decay"])
        weight_decay, eps = settings["weight_decay"], settings["eps"]

        def update(block: Block) -> None:
            gradient, scratch, total = block.gradient, block.scratch, block.state["sum"]
            decay(block, weight_decay)
            np.multiply(gradient, gradient, out=scratch)
            block.add_(total)
            np.sqrt(total, out=scratch)
            scratch += eps
            np.divide(gradient, scratch, out=scratch)
            scratch *= lr
            block.subtract_(block.parameters)

        return update


class Adadelta(Optimizer):
    """Per element, with g = gradient + weight_decay * p (Zeiler, 2012):

    square_avg = rho * square_avg + (1 - rho) * g**2
    delta      = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * g
    acc_delta  = rho * acc_delta + (1 - rho) * delta**2
    p         -= lr * delta
    """

    checks: ClassVar[Mapping[str, Check]] = MappingProxyType(
        {
            "lr": non_negative,
            "rho": fraction,
            "eps": non_negative,
            "weight_decay": non_negative,
            "maximize": flag,
        }
    )
    state_names: ClassVar[tuple[str, ...]] = ("square_avg", "acc_delta")
    # It cannot resume: delta follows from the old acc_delta, and with weight decay acc_delta from the old parameters.

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        allocate: Allocate | None = None,
    ) -> None:
        defaults = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, allocate)

    def _step_rule(self, settings: Mapping[str, Any]) -> Rule:
        lr, rho, eps, weight_decay = settings["lr"], settings["rho"], settings["eps"], settings["weight_decay"]

        def update(block: Block) -> None:
            gradient, scratch, state = block.gradient, block.scratch, block.state
            square_avg, acc_delta = state["square_avg"], state["acc_delta"]
            decay(block, weight_decay)
            np.multiply(gradient, gradient, out=scratch)
            scratch *= 1.0 - rho
            square_avg *= rho
            square_avg += scratch
            # From here on `gradient` becomes delta.
            np.add(square_avg, eps, out=scratch)
            np.sqrt(scratch, out=scratch)
            gradient /= scratch
            np.add(acc_delta, eps, out=scratch)
            np.sqrt(scratch, out=scratch)
            gradient *= scratch
            np.multiply(gradient, gradient, out=scratch)
            scratch *= 1.0 - rho
            acc_delta *= rho
            acc_delta += scratch
            np.multiply(gradient, lr, out=scratch)
            block.subtract_(block.parameters)

        return update
