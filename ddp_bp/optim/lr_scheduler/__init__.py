"""Learning rates over time, with PyTorch's names and arguments: `scheduler.step()` after each `optimizer.step()`.

schedule.py    the base: the rates are a function of the step and of nothing else
curves.py      the schedules that are one formula
one_cycle.py   up and down once, with momentum the other way round
sequential.py  schedules one after another
plateau.py     the one schedule that depends on what was measured, and so has state
"""

from __future__ import annotations

from ddp_bp.optim.lr_scheduler.curves import (
    ConstantLR,
    CosineAnnealingLR,
    CosineWarmupLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)
from ddp_bp.optim.lr_scheduler.one_cycle import OneCycleLR
from ddp_bp.optim.lr_scheduler.plateau import ReduceLROnPlateau
from ddp_bp.optim.lr_scheduler.schedule import LRScheduler
from ddp_bp.optim.lr_scheduler.sequential import SequentialLR

__all__ = [
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineWarmupLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]
