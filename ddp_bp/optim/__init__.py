"""Optimizers over flat vectors, with PyTorch's names, arguments and defaults; learning rates; clipping; averaging.

optimizer.py      what all optimizers share; sgd, adam, nadam, rmsprop, adagrad and lion are one file each
layerwise.py      the two phases of lars and lamb, which need norms of whole parameters
settings.py       what each setting may be, and groups of parameters with settings of their own
state.py          state vectors as named arrays
lr_scheduler/     learning rates as functions of the step
clip.py, rows.py  gradient clipping; sums of squares that no cut among ranks can change
average.py        the exponential moving average of the weights
"""

from __future__ import annotations

from ddp_bp.optim import lr_scheduler
from ddp_bp.optim.adagrad import Adadelta, Adagrad
from ddp_bp.optim.adam import Adam, AdamW
from ddp_bp.optim.average import ExponentialMovingAverage
from ddp_bp.optim.clip import clip_coefficient, clip_grad_norm_, clip_grad_value_, clip_value_
from ddp_bp.optim.lamb import LAMB
from ddp_bp.optim.lars import LARS
from ddp_bp.optim.layerwise import LayerwiseOptimizer
from ddp_bp.optim.lion import Lion
from ddp_bp.optim.nadam import NAdam
from ddp_bp.optim.optimizer import Optimizer
from ddp_bp.optim.rmsprop import RMSprop
from ddp_bp.optim.rows import ROW_ELEMENTS, row_square_sums
from ddp_bp.optim.sgd import SGD

__all__ = [
    "LAMB",
    "LARS",
    "ROW_ELEMENTS",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "ExponentialMovingAverage",
    "LayerwiseOptimizer",
    "Lion",
    "NAdam",
    "Optimizer",
    "RMSprop",
    "clip_coefficient",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_value_",
    "lr_scheduler",
    "row_square_sums",
]
