"""Stochastic gradient descent with momentum, after torch.optim.SGD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ddp_bp.errors import InputError
from ddp_bp.optim.block import Block
from ddp_bp.optim.optimizer import Optimizer, Rule, decay
from ddp_bp.optim.settings import Check, Params, finite, flag, non_negative
from ddp_bp.optim.state import Allocate


class SGD(Optimizer):
    """Per element, with d = gradient + weight_decay * p:

        buffer = d at the first step, later momentum * buffer + (1 - dampening) * d
        p -= lr * (d + momentum * buffer  if nesterov else  buffer)

    (Sutskever et al., 2013, as in PyTorch). Without momentum there is no buffer, and p -= lr * d.
    """

    checks: ClassVar[Mapping[str, Check]] = MappingProxyType(
        {
            "lr": non_negative,
            "momentum": non_negative,
            "dampening": finite,
            "weight_decay": non_negative,
            "nesterov": flag,
            "maximize": flag,
        }
    )
    can_resume: ClassVar[bool] = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        allocate: Allocate | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(params, defaults, allocate)

    def _check_together(self, settings: Mapping[str, Any]) -> None:
        momentum, dampening = settings["momentum"], settings["dampening"]
        if settings["nesterov"] and (momentum == 0 or dampening != 0):
            raise InputError(
                f"nesterov takes a momentum above 0 and no dampening, and got momentum={momentum}, "
                f"dampening={dampening}"
            )

    def _kept_state(self, settings: Mapping[str, Any]) -> Sequence[str]:
        return ("momentum_buffer",) if settings["momentum"] else ()

    def _step_rule(self, settings: Mapping[str, Any]) -> Rule:
        lr, momentum, weight_decay = settings["lr"], settings["momentum"], settings["weight_decay"]
        first, nesterov, share = self.num_steps == 0, settings["nesterov"], 1.0 - settings["dampening"]

        def update(block: Block) -> None:
            direction, scratch = block.gradient, block.scratch
            decay(block, weight_decay)
            if momentum:
                buffer = block.state["momentum_buffer"]
                if first:
                    np.copyto(scratch, direction)
                    block.set_(buffer)
                else:
                    np.multiply(buffer, momentum, out=block.other)
                    np.multiply(direction, share, out=scratch)
                    block.set_sum_(buffer)
                if nesterov:
                    np.multiply(buffer, momentum, out=scratch)
                    direction += scratch
                else:
                    direction = buffer
            np.multiply(direction, lr, out=scratch)
            block.subtract_(block.parameters)

        return update
