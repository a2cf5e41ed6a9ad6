"""For every loss: arguments to make it with, under PyTorch's names, and inputs for a batch of N."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Batch = tuple[np.ndarray, ...]


class LossCase(NamedTuple):
    """Arguments that are arrays are floating. `batch(rng, N)` gives (output, target), or all that forward takes."""

    name: str
    arguments: dict[str, Any]
    batch: Callable[[np.random.Generator, int], Batch]


def classes(ignored: int | None = None) -> Callable[[np.random.Generator, int], Batch]:
    def batch(rng: np.random.Generator, num_samples: int) -> Batch:
        target = rng.integers(0, 4, num_samples)
        if ignored is not None:
            target[rng.random(num_samples) < 0.3] = ignored
        return rng.standard_normal((num_samples, 4)), target

    return batch


def pixels(rng: np.random.Generator, num_samples: int) -> Batch:
    target = rng.integers(0, 4, (num_samples, 2, 3))
    target[rng.random(target.shape) < 0.3] = -100
    return rng.standard_normal((num_samples, 4, 2, 3)), target


def shares(rng: np.random.Generator, num_samples: int) -> Batch:
    return rng.standard_normal((num_samples, 4)), rng.dirichlet(np.ones(4), num_samples)


def numbers(rng: np.random.Generator, num_samples: int) -> Batch:
    return rng.standard_normal((num_samples, 4)), rng.standard_normal((num_samples, 4))


def chances(rng: np.random.Generator, num_samples: int) -> Batch:
    return rng.standard_normal((num_samples, 4)) * 5, rng.random((num_samples, 4))


def log_shares(rng: np.random.Generator, num_samples: int) -> Batch:
    output, target = shares(rng, num_samples)
    return output, np.log(target)


def pairs(rng: np.random.Generator, num_samples: int) -> Batch:
    return (*numbers(rng, num_samples), rng.choice([-1, 1], num_samples))


WEIGHT = np.array([0.5, 2.0, 1.0, 0.25])

CASES = [
    LossCase("CrossEntropyLoss", {}, classes()),
    LossCase("CrossEntropyLoss", {"weight": WEIGHT}, classes()),
    LossCase("CrossEntropyLoss", {"label_smoothing": 0.2}, classes()),
    LossCase("CrossEntropyLoss", {"ignore_index": 2}, classes()),
    LossCase("CrossEntropyLoss", {"weight": WEIGHT, "ignore_index": -1, "label_smoothing": 0.1}, classes(-1)),
    LossCase("CrossEntropyLoss", {"weight": WEIGHT, "label_smoothing": 0.1}, pixels),
    LossCase("CrossEntropyLoss", {"weight": WEIGHT, "label_smoothing": 0.1}, shares),
    LossCase("NLLLoss", {}, classes()),
    LossCase("NLLLoss", {"weight": WEIGHT, "ignore_index": 1}, classes()),
    LossCase("NLLLoss", {"weight": WEIGHT}, pixels),
    LossCase("MSELoss", {}, numbers),
    LossCase("L1Loss", {}, numbers),
    LossCase("SmoothL1Loss", {}, numbers),
    LossCase("SmoothL1Loss", {"beta": 0.4}, numbers),
    LossCase("HuberLoss", {}, numbers),
    LossCase("HuberLoss", {"delta": 0.4}, numbers),
    LossCase("BCEWithLogitsLoss", {}, chances),
    LossCase("BCEWithLogitsLoss", {"weight": WEIGHT, "pos_weight": WEIGHT[::-1].copy()}, chances),
    LossCase("KLDivLoss", {}, shares),
    LossCase("KLDivLoss", {"reduction": "batchmean", "log_target": True}, log_shares),
    LossCase("CosineEmbeddingLoss", {}, pairs),
    LossCase("CosineEmbeddingLoss", {"margin": 0.3}, pairs),
]
