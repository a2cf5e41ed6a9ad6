"""LARS: momentum, with a learning rate of its own for each parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ddp_bp.optim.block import Block
from ddp_bp.optim.layerwise import LayerwiseOptimizer, keep_gradient
from ddp_bp.optim.optimizer import Rule, decay
from ddp_bp.optim.settings import Check, Params, flag, non_negative
from ddp_bp.optim.state import Allocate


class LARS(LayerwiseOptimizer):
    """With g the gradient and norms over a whole parameter (You et al., 2017, algorithm 1):

        local = trust_coefficient * |p| / (|g| + weight_decay * |p|)
        momentum_buffer = momentum * momentum_buffer + lr * local * (g + weight_decay * p)
        p -= momentum_buffer

    `local` is 1 where |p| or |g| is 0, so that parameters that begin as zeros can leave them, and in groups with
    `adapt=False`, as is usual for biases and normalisation layers.
    """

    checks: ClassVar[Mapping[str, Check]] = MappingProxyType(
        {
            "lr": non_negative,
            "momentum": non_negative,
            "weight_decay": non_negative,
            "trust_coefficient": non_negative,
            "adapt": flag,
            "maximize": flag,
        }
    )

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        *,
        adapt: bool = True,
        maximize: bool = False,
        allocate: Allocate | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "adapt": adapt,
            "maximize": maximize,
        }
        super().__init__(params, defaults, allocate)

    def _kept_state(self, settings: Mapping[str, Any]) -> Sequence[str]:
        return ("momentum_buffer",) if settings["momentum"] else ()

    def _step_rule(self, settings: Mapping[str, Any]) -> Rule:
        return keep_gradient

    def _scaled_rule(self, settings: Mapping[str, Any], parameter_norm: float, direction_norm: float) -> Rule:
        momentum, weight_decay = settings["momentum"], settings["weight_decay"]
        rate = settings["lr"]
        if settings["adapt"] and parameter_norm > 0 and direction_norm > 0:
            rate *= settings["trust_coefficient"] * parameter_norm / (direction_norm + weight_decay * parameter_norm)

        def update(block: Block) -> None:
            gradient, parameters, state = block.gradient, block.parameters, block.state
            decay(block, weight_decay)
            gradient *= rate
            if momentum:
                buffer = state["momentum_buffer"]
                buffer *= momentum
                buffer += gradient
                gradient = buffer
            np.subtract(parameters, gradient, out=parameters)

        return update
