"""Tries a model on samples of its data, so that what cannot be trained is found before anything starts.

Nothing of a trial stays: buffers get their values back, and random numbers are drawn from streams of its own. Knows
neither ranks nor the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ddp_bp.data import Dataset, Loaded, ShardPlan
from ddp_bp.data.batches import Batch, evaluation_chunks
from ddp_bp.engine import Tensor, no_grad, tensor
from ddp_bp.engine.buffers import Buffers
from ddp_bp.engine.random import random_stream
from ddp_bp.engine.shard_group import shard_group
from ddp_bp.errors import DdpError, RecipeError
from ddp_bp.recipes.schema import Recipe
from ddp_bp.worker.objective import Objective
from ddp_bp.worker.source_lines import innermost_line, own_line

T = TypeVar("T")

# Random numbers are drawn as if by a shard that no batch can have; those before it are of initial values and samples.
_STREAM = 2**62 + 2


def try_evaluation(recipe: Recipe, objective: Objective, data: Loaded) -> None:
    """Put two samples through model and loss in evaluation mode, or one where evaluation has a chunk of one.

    Raises RecipeError if the model cannot take them, or gives what the loss cannot take.
    """
    held_out = data.evaluation
    chunks = [] if held_out is None else evaluation_chunks(held_out.num_samples, recipe.train.eval_batch_size)
    num_samples = min([2, data.train.num_samples, *(hi - lo for lo, hi in chunks)])
    batch = _first(data.train, num_samples)
    called = _called(recipe)

    def forward() -> object:
        with no_grad():
            return objective.model(tensor(batch.inputs))

    objective.model.eval()
    output = _trial(
        recipe, objective, forward, called, f"cannot take inputs of shape {batch.inputs.shape} in evaluation"
    )
    if not isinstance(output, Tensor):
        raise RecipeError(called, [f"expected a ddp_bp.Tensor from its forward, got {type(output).__name__}"])
    _check_shape(called, output.shape, (num_samples, *batch.targets.shape[1:]), data)
    _trial(recipe, objective, lambda: objective.evaluate(batch), "loss", f"cannot be taken of what {called} gives")


def try_training(recipe: Recipe, objective: Objective, data: Loaded, plan: ShardPlan, total_steps: int) -> None:
    """Put as many samples as the smallest shard has through model and loss in training mode.

    Raises RecipeError if the model cannot take so few, or nothing of it can be trained.
    """
    # The last batch of an epoch is the smallest, if training gets there.
    num_batch = plan.batch_size_at(min(total_steps, plan.steps_per_epoch) - 1)
    num_samples = max(1, num_batch // plan.num_shards)
    batch, called = _first(data.train, num_samples), _called(recipe)
    size = "1 sample" if num_samples == 1 else f"{num_samples} samples"
    sums = plan.num_shards > 1 and any(module.sums_over_shards for module in objective.model.modules())
    with shard_group(_Alike(min(num_batch, plan.num_shards))) if sums else nullcontext():
        total = _trial(
            recipe,
            objective,
            lambda: objective.train(batch),
            called,
            f"cannot be trained on a shard of {size}, the smallest that train.batch_size = "
            f"{plan.batch_size}, train.shards = {plan.num_shards} and {plan.num_samples} samples give",
        )
    if not total.loss.requires_grad:
        raise RecipeError(
            called,
            [
                "gives a loss that depends on no parameter with requires_grad, so there is nothing to train: all are "
                "frozen, or forward leaves the graph (detach, numpy, no_grad)"
            ],
        )


class _Alike:
    """Stands for the other shards of a batch: each has the values that this one has."""

    def __init__(self, num_shards: int) -> None:
        self._num_shards = num_shards

    def total(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return values * self._num_shards


def _trial(recipe: Recipe, objective: Objective, function: Callable[[], T], called: str, problem: str) -> T:
    """What `function` gives; RecipeError about `called` if it raises anything. Buffers are as before."""
    buffers = Buffers(objective.model.named_buffers())
    try:
        with random_stream(recipe.train.seed, 0, _STREAM), np.errstate(all="ignore"):
            return function()
    except (Exception, SystemExit) as error:
        is_ours = isinstance(error, DdpError)
        said = f"{error}{own_line(error)}" if is_ours else f"{type(error).__name__}: {error}{innermost_line(error)}"
        raise RecipeError(called, [f"{problem}: {said}"]) from error
    finally:
        buffers.begin()


def _first(dataset: Dataset, num_samples: int) -> Batch:
    ids = np.arange(num_samples, dtype=np.int64)
    return Batch(ids, *dataset.batch(ids), ids_digest=0)


def _check_shape(called: str, got: tuple[int, ...], targets: tuple[int, ...], data: Loaded) -> None:
    """Raise RecipeError unless `got` is the shape of an output for targets of shape `targets`."""
    positions = targets if data.num_classes is not None else targets[:1]
    expected = (*positions, data.num_outputs)
    is_row = got[:-1] == positions and len(got) == len(expected)
    if data.num_classes is not None and is_row and got[-1] < data.num_classes:
        raise RecipeError(
            called, [f"gives {got[-1]} outputs, but the data has {data.num_classes} classes, one output each"]
        )
    if got != expected and not (data.num_classes is not None and is_row):
        raise RecipeError(called, [f"expected an output of shape {expected} for {targets[0]} samples, got {got}"])


def _called(recipe: Recipe) -> str:
    return f"model {recipe.model.name or recipe.model.factory}"
