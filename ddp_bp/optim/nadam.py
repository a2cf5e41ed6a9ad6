"""NAdam, after torch.optim.NAdam."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ddp_bp.optim.adam import average_moments, take_decayed
from ddp_bp.optim.block import Block
from ddp_bp.optim.optimizer import Optimizer, Rule, decay
from ddp_bp.optim.settings import Check, Params, flag, non_negative, two_betas
from ddp_bp.optim.state import Allocate

# 1 - x is 1 in float64 for every x below this.
_NEGLIGIBLE = 2.0**-54


class NAdam(Optimizer):
    """Adam with Nesterov momentum. Per element at step t = 1, 2, ..., with g = gradient + weight_decay * p:

        exp_avg     = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq  = beta2 * exp_avg_sq + (1 - beta2) * g**2
        mu(t) = beta1 * (1 - 0.96**(t * momentum_decay) / 2),  product(t) = mu(1) * ... * mu(t)
        d  = g * (1 - mu(t)) / (1 - product(t)) + exp_avg * mu(t + 1) / (1 - product(t + 1))
        p -= lr * d / (sqrt(exp_avg_sq / (1 - beta2**t)) + eps)

    (Dozat, 2016). With `decoupled_weight_decay`, p *= 1 - lr * weight_decay instead, as in AdamW. The products are
    those of the current `betas` and `momentum_decay`, so that they follow from the step alone.
    """

    checks: ClassVar[Mapping[str, Check]] = MappingProxyType(
        {
            "lr": non_negative,
            "betas": two_betas,
            "eps": non_negative,
            "weight_decay": non_negative,
            "momentum_decay": non_negative,
            "decoupled_weight_decay": flag,
            "maximize": flag,
        }
    )
    state_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    can_resume: ClassVar[bool] = True

    def __init__(
        self,
        params: Params,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        allocate: Allocate | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        # The last product that was asked for, by (beta1, momentum_decay).
        self._products: dict[tuple[float, float], tuple[int, float]] = {}
        super().__init__(params, defaults, allocate)

    def _step_rule(self, settings: Mapping[str, Any]) -> Rule:
        lr, (beta1, beta2), weight_decay = settings["lr"], settings["betas"], settings["weight_decay"]
        momentum_decay, decoupled = settings["momentum_decay"], settings["decoupled_weight_decay"]
        step = self.num_steps + 1
        mu, mu_next = _mu(step, beta1, momentum_decay), _mu(step + 1, beta1, momentum_decay)
        product = self._product(step, beta1, momentum_decay)
        # The correction of exp_avg_sq is moved out of the elements, as in Adam.
        root = math.sqrt(1.0 - beta2**step)
        gradient_scale = lr * root * (1.0 - mu) / (1.0 - product)
        average_scale = lr * root * mu_next / (1.0 - product * mu_next)
        eps = settings["eps"] * root
        added_decay = 0.0 if decoupled else weight_decay
        shrink = 1.0 - lr * weight_decay if decoupled else 1.0

        def update(block: Block) -> None:
            parameters, gradient, scratch, state = block.parameters, block.gradient, block.scratch, block.state
            exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
            decay(block, added_decay)
            average_moments(block, exp_avg, exp_avg_sq, beta1, beta2)
            gradient *= gradient_scale
            np.multiply(exp_avg, average_scale, out=scratch)
            gradient += scratch
            np.sqrt(exp_avg_sq, out=scratch)
            scratch += eps
            np.divide(gradient, scratch, out=scratch)
            take_decayed(block, parameters, shrink)

        return update

    def _product(self, step: int, beta1: float, momentum_decay: float) -> float:
        """mu(1) * ... * mu(step), going on from the last one; it soon is too small to matter."""
        last, product = self._products.get((beta1, momentum_decay), (0, 1.0))
        if last > step:
            last, product = 0, 1.0
        while last < step and product >= _NEGLIGIBLE:
            last += 1
            product *= _mu(last, beta1, momentum_decay)
        # One entry per group is in use; more come only from settings that change at every step.
        if len(self._products) > len(self.param_groups):
            self._products.clear()
        self._products[beta1, momentum_decay] = (last, product)
        return product


def _mu(step: int, beta1: float, momentum_decay: float) -> float:
    return beta1 * (1.0 - 0.5 * math.pow(0.96, step * momentum_decay))
