"""LAMB: Adam, with a learning rate of its own for each parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ddp_bp.optim.adam import average_moments
from ddp_bp.optim.block import Block
from ddp_bp.optim.layerwise import LayerwiseOptimizer
from ddp_bp.optim.optimizer import Rule
from ddp_bp.optim.settings import Check, Params, flag, non_negative, two_betas
from ddp_bp.optim.state import Allocate


class LAMB(LayerwiseOptimizer):
    """With g the gradient at step t = 1, 2, ... and norms over a whole parameter (You et al., 2020, algorithm 2):

        exp_avg     = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq  = beta2 * exp_avg_sq + (1 - beta2) * g**2
        d  = (exp_avg / (1 - beta1**t)) / (sqrt(exp_avg_sq / (1 - beta2**t)) + eps) + weight_decay * p
        p -= lr * |p| / |d| * d

    The ratio is 1 where |p| or |d| is 0, so that parameters that begin as zeros can leave them, and in groups with
    `adapt=False`, as is usual for biases and normalisation layers.
    """

    checks: ClassVar[Mapping[str, Check]] = MappingProxyType(
        {
            "lr": non_negative,
            "betas": two_betas,
            "eps": non_negative,
            "weight_decay": non_negative,
            "adapt": flag,
            "maximize": flag,
        }
    )
    state_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        *,
        adapt: bool = True,
        maximize: bool = False,
        allocate: Allocate | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "adapt": adapt,
            "maximize": maximize,
        }
        super().__init__(params, defaults, allocate)

    def _step_rule(self, settings: Mapping[str, Any]) -> Rule:
        (beta1, beta2), weight_decay = settings["betas"], settings["weight_decay"]
        step = self.num_steps + 1
        # The corrections are moved out of the elements, as in Adam.
        root = math.sqrt(1.0 - beta2**step)
        scale = root / (1.0 - beta1**step)
        eps = settings["eps"] * root

        def update(block: Block) -> None:
            parameters, gradient, scratch, state = block.parameters, block.gradient, block.scratch, block.state
            exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
            average_moments(block, exp_avg, exp_avg_sq, beta1, beta2)
            np.sqrt(exp_avg_sq, out=scratch)
            scratch += eps
            np.divide(exp_avg, scratch, out=gradient)
            gradient *= scale
            if weight_decay:
                np.multiply(parameters, weight_decay, out=scratch)
                gradient += scratch

        return update

    def _scaled_rule(self, settings: Mapping[str, Any], parameter_norm: float, direction_norm: float) -> Rule:
        rate = settings["lr"]
        if settings["adapt"] and parameter_norm > 0 and direction_norm > 0:
            rate *= parameter_norm / direction_norm

        def update(block: Block) -> None:
            np.multiply(block.gradient, rate, out=block.scratch)
            block.subtract_(block.parameters)

        return update
