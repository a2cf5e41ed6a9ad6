"""RMSprop, after torch.optim.RMSprop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ddp_bp.optim.optimizer import Block, Optimizer, Rule, decay
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
            parameters, gradient, scratch, state = block
            square_avg = state["square_avg"]
            decay(block, weight_decay)
            np.multiply(gradient, gradient, out=scratch)
            scratch *= 1.0 - alpha
            square_avg *= alpha
            square_avg += scratch
            if centered:
                grad_avg = state["grad_avg"]
                np.subtract(gradient, grad_avg, out=scratch)
                scratch *= 1.0 - alpha
                grad_avg += scratch
                np.multiply(grad_avg, grad_avg, out=scratch)
                np.subtract(square_avg, scratch, out=scratch)
                np.maximum(scratch, 0.0, out=scratch)
                np.sqrt(scratch, out=scratch)
            else:
                np.sqrt(square_avg, out=scratch)
            scratch += eps
            gradient /= scratch
            if momentum:
                buffer = state["momentum_buffer"]
                buffer *= momentum
                buffer += gradient
                np.multiply(buffer, lr, out=scratch)
            else:
                np.multiply(gradient, lr, out=scratch)
            parameters -= scratch

        return update
