"""From a recipe to what is trained: data, model, loss and optimizer, the same bits in every process.

Whether data and model fit together is checked here. Knows nothing of ranks, run directories or the coordinator.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ddp_bp._version import __version__
from ddp_bp.data import Loaded, ShardPlan
from ddp_bp.engine.flat import FlatParameters
from ddp_bp.errors import EngineError, RecipeError
from ddp_bp.nn import Module
from ddp_bp.optim import (
    LAMB,
    LARS,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    AdamW,
    Lion,
    NAdam,
    Optimizer,
    RMSprop,
)
from ddp_bp.recipes.load import encode
from ddp_bp.recipes.optimization import OptimizerSection
from ddp_bp.recipes.schema import Recipe
from ddp_bp.worker.blas import blas_in_use
from ddp_bp.worker.datasource import load_data
from ddp_bp.worker.factory import build_model, source_digest
from ddp_bp.worker.loss import build_loss, loss_problems
from ddp_bp.worker.objective import Objective
from ddp_bp.worker.preflight import try_evaluation, try_training
from ddp_bp.worker.sampling import check_sampling, sample_problems
from ddp_bp.worker.schedule import Schedule, schedule_problems

OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = MappingProxyType(
    {
        "sgd": SGD,
        "adam": Adam,
        "adamw": AdamW,
        "rmsprop": RMSprop,
        "adagrad": Adagrad,
        "adadelta": Adadelta,
        "nadam": NAdam,
        "lion": Lion,
        "lars": LARS,
        "lamb": LAMB,
    }
)


@dataclass(frozen=True)
class Job:
    """Everything that one process needs to compute with, before it knows the other ranks.

    `recipe` has everything resolved that the first start fixes. `layout` is a 64-bit fingerprint of what must be equal
    on all ranks: recipe, parameters and their first values, the user's own code, and the versions that decide bits.
    """

    recipe: Recipe
    data: Loaded
    objective: Objective
    parameters: FlatParameters
    optimizer: Optimizer
    schedule: Schedule
    plan: ShardPlan
    total_steps: int
    layout: int

    @property
    def data_digests(self) -> list[str]:
        """Fingerprints of the training and evaluation data."""
        return [str(part.digest) for part in (self.data.train, self.data.evaluation) if part is not None]

    @property
    def is_classification(self) -> bool:
        return self.data.num_classes is not None


def assemble(recipe: Recipe, base: Path, *, check_data: bool, cache: Path | None = None) -> Job:
    """Load the data and build the model of `recipe`, whose relative paths start at `base`.

    Args:
        recipe: resolved, so that `train.shards` is set.
        check_data: whether to look at every value for NaN and infinity, and to try the model in training; one process
            of a job is enough.
        cache: the user's cache folder, where downloaded data sets are.

    Raises:
        DataError: the data cannot be trained on.
        RecipeError: what the recipe asks for does not fit the data, or the model cannot be built.
    """
    assert recipe.train.shards is not None
    data, problems = load_data(recipe.data, base, cache=cache, check=check_data)
    plan = ShardPlan(data.train.num_samples, recipe.train.batch_size, recipe.train.shards, recipe.train.seed)
    problems += _problems(recipe, data, plan)
    if problems:
        raise RecipeError("recipe", problems)
    model = build_model(recipe.model, data.input_shape, data.num_outputs, recipe.train.seed, base)
    objective = Objective(
        model,
        build_loss(recipe.loss, data),
        counts_correct=data.num_classes is not None,
        answers_per_sample=1 if data.vocabulary is None else data.input_shape[0],
    )
    try_evaluation(recipe, objective, data)
    check_sampling(model, recipe.sample, data)
    try:
        parameters = FlatParameters(model.named_parameters())
    except EngineError as error:
        raise RecipeError(f"model {recipe.model.name or recipe.model.factory}", [str(error)]) from error
    if recipe.exchange.compression != "none" and parameters.dtype != np.float32:
        problem = f"exchange.compression: expected a model with float32 parameters, got {parameters.dtype}"
        raise RecipeError("recipe", [problem])
    optimizer = _build_optimizer(recipe.optimizer, parameters)
    total_steps = min(recipe.train.epochs * plan.steps_per_epoch, recipe.train.max_steps or sys.maxsize)
    if check_data:
        try_training(recipe, objective, data, plan, total_steps)
    return Job(
        recipe=recipe,
        data=data,
        objective=objective,
        parameters=optimizer.flat,
        optimizer=optimizer,
        schedule=Schedule(recipe.schedule, optimizer, plan.steps_per_epoch),
        plan=plan,
        total_steps=total_steps,
        layout=_fingerprint(recipe, model, parameters, data),
    )


def versions() -> dict[str, str]:
    """The versions that decide which bits a computation gives."""
    return {
        "ddp_bp": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "blas": str(blas_in_use()),
    }


def _problems(recipe: Recipe, data: Loaded, plan: ShardPlan) -> list[str]:
    """What of the recipe does not fit the data, whatever the model is."""
    problems = [
        *loss_problems(recipe.loss, data),
        *sample_problems(recipe.sample, data),
        *schedule_problems(recipe.schedule, plan.steps_per_epoch),
    ]
    num_samples = min(plan.batch_size, plan.num_samples)
    if plan.num_shards > num_samples:
        problems.append(
            f"train.shards: expected at most as many as the largest batch has samples, {num_samples}, got "
            f"{plan.num_shards}, which is the number of workers unless the recipe says otherwise"
        )
    if recipe.schedule.name == "plateau" and data.evaluation is None:
        problems.append("schedule.name: 'plateau' needs samples that are held out, and of these data none are")
    return problems


def _build_optimizer(section: OptimizerSection, parameters: FlatParameters) -> Optimizer:
    kind, arguments = OPTIMIZERS[section.name], {"lr": section.lr, **section.arguments()}
    if section.decay == "all":
        return kind(parameters, **arguments)
    named = [(slot.name, parameter) for slot, parameter in zip(parameters.slots, parameters.parameters, strict=True)]
    matrices = [(name, parameter) for name, parameter in named if parameter.ndim >= 2]
    others = [(name, parameter) for name, parameter in named if parameter.ndim < 2]
    settings: dict[str, Any] = {"weight_decay": 0.0}
    if kind in (LARS, LAMB):
        settings["adapt"] = False
    groups = [{"params": matrices}, {"params": others, **settings}]
    return kind([group for group in groups if group["params"]], **arguments)


def _fingerprint(recipe: Recipe, model: Module, parameters: FlatParameters, data: Loaded) -> int:
    digest = hashlib.sha256(encode(recipe))
    digest.update(repr([(slot.name, slot.shape) for slot in parameters.slots]).encode())
    digest.update(parameters.data.tobytes())
    digest.update(source_digest(recipe.model, model))
    alike = {name: version for name, version in versions().items() if name != "blas" or not recipe.blas.allow_mixed}
    digest.update(repr(sorted(alike.items())).encode())
    digest.update(repr([data.train.digest, data.evaluation.digest if data.evaluation else None]).encode())
    return int.from_bytes(digest.digest()[:8], "little")
