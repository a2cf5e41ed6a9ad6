"""Adam and AdamW, after torch.optim."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import ClassVar

import numpy as np

from ddp_bp.engine.flat import FlatParameters
from ddp_bp.engine.tensor import Parameter
from ddp_bp.optim.optimizer import Allocate, Block, Optimizer, in_unit_interval, non_negative


class Adam(Optimizer):
    """Per element at step t = 1, 2, ..., with g = gradient + weight_decay * p (Kingma and Ba, 2015):

    exp_avg    += (1 - beta1) * (g - exp_avg)
    exp_avg_sq  = beta2 * exp_avg_sq + (1 - beta2) * g**2
    p -= lr * (exp_avg / (1 - beta1**t)) / (sqrt(exp_avg_sq / (1 - beta2**t)) + eps)
    """

    state_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    # Whether weight decay shrinks the parameters themselves instead of entering the gradient.
    decoupled: ClassVar[bool] = False

    def __init__(
        self,
        params: FlatParameters | Iterable[tuple[str, Parameter] | Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        allocate: Allocate | None = None,
    ) -> None:
        self.betas = (in_unit_interval("betas[0]", betas[0]), in_unit_interval("betas[1]", betas[1]))
        self.eps = non_negative("eps", eps)
        self.weight_decay = non_negative("weight_decay", weight_decay)
        super().__init__(params, lr, allocate)

    def _step_rule(self) -> Callable[[Block], None]:
        beta1, beta2 = self.betas
        step = self.num_steps + 1
        # Both corrections are moved out of the elements: m' / (sqrt(v') + eps) = scale * m / (sqrt(v) + eps * root).
        root = math.sqrt(1.0 - beta2**step)
        scale = self.lr * root / (1.0 - beta1**step)
        eps = self.eps * root
        added_decay = 0.0 if self.decoupled else self.weight_decay
        shrink = 1.0 - self.lr * self.weight_decay if self.decoupled else 1.0

        def update(block: Block) -> None:
            parameters, gradient, scratch, (exp_avg, exp_avg_sq) = block
            if added_decay:
                np.multiply(parameters, added_decay, out=scratch)
                gradient += scratch
            if shrink != 1.0:
                parameters *= shrink
            np.subtract(gradient, exp_avg, out=scratch)
            scratch *= 1.0 - beta1
            exp_avg += scratch
            exp_avg_sq *= beta2
            gradient *= gradient
            gradient *= 1.0 - beta2
            exp_avg_sq += gradient
            np.sqrt(exp_avg_sq, out=scratch)
            scratch += eps
            np.divide(exp_avg, scratch, out=scratch)
            scratch *= scale
            parameters -= scratch

        return update


class AdamW(Adam):
    """Adam with decoupled weight decay: p *= 1 - lr * weight_decay before each step (Loshchilov and Hutter, 2019)."""

    decoupled: ClassVar[bool] = True

    def __init__(
        self,
        params: FlatParameters | Iterable[tuple[str, Parameter] | Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        allocate: Allocate | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, allocate=allocate)
