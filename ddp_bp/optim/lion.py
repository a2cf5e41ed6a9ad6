"""Lion, which steps by the sign of a momentum."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ddp_bp.optim.adam import take_decayed
from ddp_bp.optim.block import Block
from ddp_bp.optim.optimizer import Optimizer, Rule
from ddp_bp.optim.settings import Check, Params, flag, non_negative, two_betas
from ddp_bp.optim.state import Allocate


class Lion(Optimizer):
    """Per element, with g the gradient (Chen et al., 2023, "Symbolic discovery of optimization algorithms"):

    p      -= lr * (sign(beta1 * exp_avg + (1 - beta1) * g) + weight_decay * p)
    exp_avg = beta2 * exp_avg + (1 - beta2) * g
    """

    checks: ClassVar[Mapping[str, Check]] = MappingProxyType(
        {"lr": non_negative, "betas": two_betas, "weight_decay": non_negative, "maximize": flag}
    )
    state_names: ClassVar[tuple[str, ...]] = ("exp_avg",)
    can_resume: ClassVar[bool] = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        allocate: Allocate | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, allocate)

    def _step_rule(self, settings: Mapping[str, Any]) -> Rule:
        lr, (beta1, beta2) = settings["lr"], settings["betas"]
        shrink = 1.0 - lr * settings["weight_decay"]

        def update(block: Block) -> None:
            gradient, scratch, exp_avg = block.gradient, block.scratch, block.state["exp_avg"]
            # gradient - exp_avg serves both averages: beta * m + (1 - beta) * g = m + (1 - beta) * (g - m).
            gradient -= exp_avg
            np.multiply(gradient, 1.0 - beta1, out=scratch)
            scratch += exp_avg
            # In place, np.sign takes ten times as long.
            np.sign(scratch, out=block.other)
            np.multiply(block.other, lr, out=scratch)
            take_decayed(block, block.parameters, shrink)
            np.multiply(gradient, 1.0 - beta2, out=scratch)
            block.add_(exp_avg)

        return update
