"""From a recipe to what is trained: data, model, loss and optimizer, the same bits in every process.

What the user gave is checked here as a whole: data against model, options against the factory that takes them. Knows
nothing of ranks, run directories or the coordinator.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import platform
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ddp_bp._version import __version__
from ddp_bp.data import DataSpec, Loaded, ShardPlan, load
from ddp_bp.engine import no_grad, tensor
from ddp_bp.engine.flat import FlatParameters
from ddp_bp.engine.random import random_stream
from ddp_bp.errors import DdpError, EngineError, RecipeError
from ddp_bp.nn import CrossEntropyLoss, Module, MSELoss
from ddp_bp.nn.models import MODELS
from ddp_bp.optim import SGD, Adam, AdamW, Optimizer
from ddp_bp.recipes.load import encode
from ddp_bp.recipes.schema import ModelSection, OptimizerSection, Recipe
from ddp_bp.worker.objective import Objective

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


# Initial values are drawn as if by a shard that no batch can have.
_INIT_STREAM = 2**62


@dataclass(frozen=True)
class Job:
    """Everything that one process needs to compute with, before it knows the other ranks.

    `recipe` has its number of shards resolved. `layout` is a 64-bit fingerprint of what must be equal on all ranks:
    recipe, parameters and their first values, and the versions that decide bits.
    """

    recipe: Recipe
    data: Loaded
    objective: Objective
    parameters: FlatParameters
    optimizer: Optimizer
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
        recipe: with `train.shards` set.
        check_data: whether to look at every value for NaN and infinity; one process of a job is enough.
        cache: the user's cache folder, where downloaded data sets are.

    Raises:
        DataError: the data cannot be trained on.
        RecipeError: the model cannot be built, or does not fit the data.
    """
    assert recipe.train.shards is not None
    spec = msgspec.to_builtins(recipe.data)
    spec["seed"] = spec.pop("split_seed")
    spec["target"] = None if recipe.data.target is None else str(recipe.data.target)
    data = load(msgspec.convert(spec, DataSpec), base, cache=cache, check=check_data)
    model = _build_model(recipe.model, recipe.train.seed, data, base)
    _check_output(recipe.model, model, data)
    loss = CrossEntropyLoss() if data.num_classes is not None else MSELoss()
    try:
        parameters = FlatParameters(model.named_parameters())
    except EngineError as error:
        raise RecipeError(f"model {recipe.model.name or recipe.model.factory}", [str(error)]) from error
    plan = ShardPlan(data.train.num_samples, recipe.train.batch_size, recipe.train.shards, recipe.train.seed)
    total_steps = recipe.train.epochs * plan.steps_per_epoch
    return Job(
        recipe=recipe,
        data=data,
        objective=Objective(model, loss, counts_correct=data.num_classes is not None),
        parameters=parameters,
        optimizer=_build_optimizer(recipe.optimizer, parameters),
        plan=plan,
        total_steps=min(total_steps, recipe.train.max_steps or total_steps),
        layout=_fingerprint(recipe, parameters, data),
    )


def versions() -> dict[str, str]:
    """The versions that decide which bits a computation gives."""
    return {"ddp_bp": __version__, "numpy": np.__version__, "python": platform.python_version()}


def _build_model(section: ModelSection, seed: int, data: Loaded, base: Path) -> Module:
    factory, called = _factory(section, base)
    options = _check_options(factory, called, section.options)
    try:
        with random_stream(seed, 0, _INIT_STREAM):
            model = factory(data.input_shape, data.num_outputs, **options)
    except DdpError as error:
        raise RecipeError(f"model {called}", [str(error)]) from error
    except (Exception, SystemExit) as error:
        where = traceback_line(error)
        raise RecipeError(f"model {called}", [f"raised {type(error).__name__}: {error}{where}"]) from error
    if not isinstance(model, Module):
        raise RecipeError(f"model {called}", [f"expected a ddp_bp.nn.Module from it, got {type(model).__name__}"])
    if not any(True for _ in model.parameters()):
        raise RecipeError(f"model {called}", ["has no parameters, so there is nothing to train"])
    return model


def traceback_line(error: BaseException) -> str:
    """` (file, line)` of the innermost frame of `error`, or nothing."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})"


def _factory(section: ModelSection, base: Path) -> tuple[Callable[..., Any], str]:
    if section.name is not None:
        if section.name not in MODELS:
            near = difflib.get_close_matches(section.name, MODELS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise RecipeError(
                "model", [f"model.name: unknown model {section.name!r}{hint}; known: {', '.join(MODELS)}"]
            )
        return MODELS[section.name], section.name
    called = section.factory or ""
    module_name, _, attribute = called.partition(":")
    if not module_name or not attribute:
        raise RecipeError("model", [f"model.factory: expected 'package.module:function', got {called!r}"])
    # The user's own code stands beside the recipe or in the working folder, as for a script started there.
    for folder in (str(base.resolve()), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        factory = getattr(importlib.import_module(module_name), attribute, None)
    except (Exception, SystemExit) as error:
        where = "" if isinstance(error, ImportError) else traceback_line(error)
        problem = f"model.factory: importing {module_name!r} raised {type(error).__name__}: {error}{where}"
        raise RecipeError("model", [problem]) from error
    if not callable(factory):
        near = difflib.get_close_matches(attribute, dir(sys.modules[module_name]), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise RecipeError("model", [f"model.factory: module {module_name!r} has no function {attribute!r}{hint}"])
    return factory, called


def _check_options(factory: Callable[..., Any], called: str, options: dict[str, Any]) -> dict[str, Any]:
    """`options` converted to the factory's annotated types. Raises RecipeError with every option that does not fit."""
    parameters = list(inspect.signature(factory).parameters.values())[2:]
    known = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    hints = _option_types(factory)
    problems, converted = [], {}
    for name, value in options.items():
        if name not in known and not takes_any:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else f"; known: {', '.join(sorted(known)) or 'none'}"
            problems.append(f"model.options.{name}: unknown option of {called}{hint}")
            continue
        try:
            converted[name] = msgspec.convert(value, type=hints.get(name, Any))
        except TypeError:
            # A type that msgspec has no rule for: the factory itself is to judge the value.
            converted[name] = value
        except msgspec.ValidationError as error:
            problems.append(f"model.options.{name}: {str(error).split(' - at ')[0]}, got {value!r}")
    required = {p.name for p in parameters if p.default is p.empty and p.name in known}
    problems += [f"model.options.{name}: {called} needs it" for name in sorted(required - options.keys())]
    if problems:
        raise RecipeError("model", problems)
    return converted


def _option_types(factory: Callable[..., Any]) -> dict[str, Any]:
    """The annotated types by argument; empty where annotations are missing or cannot be evaluated here."""
    function = factory.__init__ if inspect.isclass(factory) else factory
    try:
        return typing.get_type_hints(function)
    except Exception:
        return {}


def _check_output(section: ModelSection, model: Module, data: Loaded) -> None:
    """Put one sample through the model, so that a model that does not fit the data is found before anything starts."""
    called = section.name or section.factory or ""
    inputs, _ = data.train.batch(np.zeros(1, np.int64))
    model.eval()
    try:
        with no_grad():
            output = model(tensor(inputs))
    except (Exception, SystemExit) as error:
        problem = f"cannot take one input of shape {inputs.shape}: {error}"
        raise RecipeError(f"model {called}", [problem]) from error
    expected, got = (1, data.num_outputs), tuple(getattr(output, "shape", ()))
    if data.num_classes is not None and len(got) == 2 and got[1] < data.num_classes:
        raise RecipeError(
            f"model {called}", [f"gives {got[1]} outputs, but the data has {data.num_classes} classes, one output each"]
        )
    fits = got == expected or (data.num_classes is not None and len(got) == 2 and got[0] == 1)
    if not fits:
        raise RecipeError(f"model {called}", [f"expected an output of shape {expected} for one sample, got {got}"])


def _build_optimizer(section: OptimizerSection, parameters: FlatParameters) -> Optimizer:
    return OPTIMIZERS[section.name](parameters, lr=section.lr, **section.arguments())


def _fingerprint(recipe: Recipe, parameters: FlatParameters, data: Loaded) -> int:
    digest = hashlib.sha256(encode(recipe))
    digest.update(repr([(slot.name, slot.shape) for slot in parameters.slots]).encode())
    digest.update(parameters.data.tobytes())
    digest.update(repr(sorted(versions().items())).encode())
    digest.update(repr([data.train.digest, data.evaluation.digest if data.evaluation else None]).encode())
    return int.from_bytes(digest.digest()[:8], "little")
