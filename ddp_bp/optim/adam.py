"""Adam, AdamW and NAdam, after torch.optim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ddp_bp.engine.ops.operation import Array
from ddp_bp.optim.block import Block
from ddp_bp.optim.optimizer import Optimizer, Rule, decay
from ddp_bp.optim.settings import Check, Params, flag, non_negative, two_betas
from ddp_bp.optim.state import Allocate


class Adam(Optimizer):
    """Per element at step t = 1, 2, ..., with g = gradient + weight_decay * p (Kingma and Ba, 2015):

    exp_avg     = beta1 * exp_avg + (1 - beta1) * g
    exp_avg_sq  = beta2 * exp_avg_sq + (1 - beta2) * g**2
    p -= lr * (exp_avg / (1 - beta1**t)) / (sqrt(exp_avg_sq / (1 - beta2**t)) + eps)

    With `amsgrad`, the largest exp_avg_sq so far takes its place in the last line (Reddi et al., 2018).
    """

    checks: ClassVar[Mapping[str, Check]] = MappingProxyType(
        {
            "lr": non_negative,
            "betas": two_betas,
            "eps": non_negative,
            "weight_decay": non_negative,
            "amsgrad": flag,
            "maximize": flag,
        }
    )
    can_resume: ClassVar[bool] = True
    # Whether weight decay shrinks the parameters themselves instead of entering the gradient.
    decoupled: ClassVar[bool] = False

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        allocate: Allocate | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
        }
        super().__init__(params, defaults, allocate)

    def _kept_state(self, settings: Mapping[str, Any]) -> Sequence[str]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if settings["amsgrad"] else ("exp_avg", "exp_avg_sq")

    def _step_rule(self, settings: Mapping[str, Any]) -> Rule:
        lr, (beta1, beta2), weight_decay = settings["lr"], settings["betas"], settings["weight_decay"]
        step = self.num_steps + 1
        # Both corrections are moved out of the elements: m' / (sqrt(v') + eps) = scale * m / (sqrt(v) + eps * root).
        root = math.sqrt(1.0 - beta2**step)
        scale = lr * root / (1.0 - beta1**step)
        eps = settings["eps"] * root
        amsgrad = settings["amsgrad"]
        added_decay = 0.0 if self.decoupled else weight_decay
        shrink = 1.0 - lr * weight_decay if self.decoupled else 1.0

        def update(block: Block) -> None:
            parameters, scratch, state = block.parameters, block.scratch, block.state
            decay(block, added_decay)
            exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
            average_moments(block, exp_avg, exp_avg_sq, beta1, beta2)
            if amsgrad:
                largest = state["max_exp_avg_sq"]
                # No harm if it is done twice.
                np.maximum(largest, exp_avg_sq, out=largest)
                exp_avg_sq = largest
            np.sqrt(exp_avg_sq, out=scratch)
            scratch += eps
            np.divide(exp_avg, scratch, out=scratch)
            scratch *= scale
            take_decayed(block, parameters, shrink)

        return update


class AdamW(Adam):
    """Adam with decoupled weight decay: p *= 1 - lr * weight_decay before each step (Loshchilov and Hutter, 2019)."""

    decoupled: ClassVar[bool] = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        allocate: Allocate | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, allocate=allocate)


def average_moments(block: Block, exp_avg: Array, exp_avg_sq: Array, beta1: float, beta2: float) -> None:
    """Takes the block's gradient into the running averages of itself and its square."""
    gradient, scratch, other = block.gradient, block.scratch, block.other
    np.multiply(exp_avg, beta1, out=other)
    np.multiply(gradient, 1.0 - beta1, out=scratch)
    block.set_sum_(exp_avg)
    np.multiply(exp_avg_sq, beta2, out=other)
    np.multiply(gradient, gradient, out=scratch)
    scratch *= 1.0 - beta2
    block.set_sum_(exp_avg_sq)


def take_decayed(block: Block, parameters: Array, shrink: float) -> None:
    """p = shrink * p - scratch: the last write of a rule with decoupled weight decay."""
    if shrink == 1.0:
        block.subtract_(parameters)
    else:
        np.multiply(parameters, shrink, out=block.other)
        block.set_difference_(parameters)
