"""Stochastic gradient descent with momentum, after torch.optim.SGD."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ddp_bp.engine.flat import FlatParameters
from ddp_bp.engine.tensor import Parameter
from ddp_bp.errors import InputError
from ddp_bp.optim.optimizer import Allocate, Block, Optimizer, non_negative


class SGD(Optimizer):
    """Per element, with d = gradient + weight_decay * p:

        buffer = d at the first step, later momentum * buffer + (1 - dampening) * d
        p -= lr * (d + momentum * buffer  if nesterov else  buffer)

    (Sutskever et al., 2013, as in PyTorch). Without momentum there is no buffer, and p -= lr * d.
    """

    def __init__(
        self,
        params: FlatParameters | Iterable[tuple[str, Parameter] | Parameter],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        allocate: Allocate | None = None,
    ) -> None:
        self.momentum = non_negative("momentum", momentum)
        self.dampening = dampening
        self.weight_decay = non_negative("weight_decay", weight_decay)
        self.nesterov = nesterov
        if nesterov and (momentum == 0 or dampening != 0):
            raise InputError(
                f"nesterov takes a momentum above 0 and no dampening, and got momentum={momentum}, "
                f"dampening={dampening}"
            )
        super().__init__(params, lr, allocate)

    def _kept_state(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()

    def _step_rule(self) -> Callable[[Block], None]:
        lr, momentum, weight_decay = self.lr, self.momentum, self.weight_decay
        first, nesterov, share = self.num_steps == 0, self.nesterov, 1.0 - self.dampening

        def update(block: Block) -> None:
            parameters, direction, scratch, state = block
            if weight_decay:
                np.multiply(parameters, weight_decay, out=scratch)
                direction += scratch
            if momentum:
                (buffer,) = state
                if first:
                    np.copyto(buffer, direction)
                else:
                    buffer *= momentum
                    np.multiply(direction, share, out=scratch)
                    buffer += scratch
                if nesterov:
                    np.multiply(buffer, momentum, out=scratch)
                    direction += scratch
                else:
                    direction = buffer
            np.multiply(direction, lr, out=scratch)
            parameters -= scratch

        return update
