"""RMSprop, after torch.optim.RMSprop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ddp_bp.optim.block import Block
from ddp_bp.optim.optimizer import Optimizer, Rule, decay
from ddp_bp.optim.settings import Check, Params, flag, fraction, non_negative
from ddp_bp.optim.state import Allocate


class RMSprop(Optimizer):
    """Per element, with g = gradient + weight_decay * p:

        square_avg = alpha * square_avg + (1 - alpha) * g**2
        d = g / (sqrt(square_avg) + eps)
        p -= lr * d;  with momentum: momentum_buffer = momentum * momentum_buffer + d,  p -= lr * momentum_buffer

    (Tieleman and Hinton, 2012). If `centered`, square_avg - grad_avg**2 stands under the root, where grad_avg is the
    running average of g itself (Graves, 2013); a difference that rounding made negative counts as 0.
    """

    checks: ClassVar[Mapping[str, Check]] = MappingProxyType(
        {
            "lr": non_negative,
            "alpha": fraction,
            "eps": non_negative,
            "weight_decay": non_negative,
            "momentum": non_negative,
            "centered": flag,
            "maximize": flag,
        }
    )
    can_resume: ClassVar[bool] = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        allocate: Allocate | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "maximize": maximize,
        }
        super().__init__(params, defaults, allocate)

    def _kept_state(self, settings: Mapping[str, Any]) -> Sequence[str]:
        names = ["square_avg"]
        if settings["momentum"]:
            names.append("momentum_buffer")
        if settings["centered"]:
            names.append("grad_avg")
        return names

    def _step_rule(self, settings: Mapping[str, Any]) -> Rule:
        lr, alpha, eps = settings["lr"], settings["alpha"], settings["eps"]
        weight_decay, momentum, centered = settings["weight_decay"], settings["momentum"], settings["centered"]

        def update(block: Block) -> None:
            gradient, scratch, other, state = block.gradient, block.scratch, block.other, block.state
            square_avg = state["square_avg"]
            decay(block, weight_decay)
            np.multiply(square_avg, alpha, out=other)
            np.multiply(gradient, gradient, out=scratch)
            scratch *= 1.0 - alpha
            block.set_sum_(square_avg)
            if centered:
                grad_avg = state["grad_avg"]
                np.subtract(gradient, grad_avg, out=scratch)
                scratch *= 1.0 - alpha
                block.add_(grad_avg)
                np.multiply(grad_avg, grad_avg, out=scratch)
                np.subtract(square_avg, scratch, out=scratch)
                np.maximum(scratch, 0.0, out=scratch)
                np.sqrt(scratch, out=scratch)
            else:
                np.sqrt(square_avg, out=scratch)
            scratch += eps
            np.divide(gradient, scratch, out=scratch)
            if momentum:
                buffer = state["momentum_buffer"]
                np.multiply(buffer, momentum, out=other)
                block.set_sum_(buffer)
                np.multiply(buffer, lr, out=scratch)
            else:
                scratch *= lr
            block.subtract_(block.parameters)

        return update
