"""From a recipe's model section to a model: which function builds it, whether it takes these options, and the call.

Options are checked against the function's annotations, a user's own as those of packaged models, so that what is wrong
is known before anything is built. Knows neither data nor training.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddp_bp.engine.random import random_stream
from ddp_bp.errors import DdpError, RecipeError
from ddp_bp.nn import Module
from ddp_bp.nn.models import MODELS
from ddp_bp.nn.models.options import option_conflicts
from ddp_bp.nn.streams import key_streams
from ddp_bp.recipes.schema import ModelSection
from ddp_bp.recipes.wording import convert, nearest, unknown
from ddp_bp.worker.source_lines import innermost_line, own_line

# Initial values are drawn as if by a shard that no batch can have.
_INIT_STREAM = 2**62


def model_problems(section: ModelSection, base: Path) -> list[str]:
    """Every reason, one line each with its key, why `section` names no model that takes its options.

    Modules of the user's own are looked for in `base`, then in the working folder, then among what is installed, and
    imported.
    """
    return _resolve(section, base)[2]


def build_model(section: ModelSection, input_shape: tuple[int, ...], num_outputs: int, seed: int, base: Path) -> Module:
    """The model of `section` for inputs (N, *input_shape), its first values drawn from a stream of `seed`.

    Raises:
        RecipeError: there is no such model, it does not take its options, or what it gives cannot be trained.
    """
    factory, options, problems = _resolve(section, base)
    if problems or factory is None:
        raise RecipeError("model", problems)
    called = f"model {section.name or section.factory}"
    try:
        with random_stream(seed, 0, _INIT_STREAM):
            model = factory(input_shape, num_outputs, **options)
    except DdpError as error:
        raise RecipeError(called, [f"{error}{own_line(error)}"]) from error
    except (Exception, SystemExit) as error:
        where = innermost_line(error)
        raise RecipeError(called, [f"raised {type(error).__name__}: {error}{where}"]) from error
    if not isinstance(model, Module):
        raise RecipeError(called, [f"expected a ddp_bp.nn.Module from it, got {type(model).__name__}"])
    if not any(True for _ in model.parameters()):
        raise RecipeError(called, ["has no parameters, so there is nothing to train"])
    key_streams(model)
    return model


def source_digest(section: ModelSection, model: Module) -> bytes:
    """A digest of the files that hold the user's own parts of `model`: its factory, and the classes of its modules."""
    names = {type(module).__module__ for module in model.modules()}
    names |= {section.factory.partition(":")[0]} if section.factory is not None else set()
    digest = hashlib.sha256()
    for name in sorted(names):
        file = getattr(sys.modules.get(name), "__file__", None)
        # What comes with the package is told apart by its version.
        if name.partition(".")[0] != "ddp_bp" and file is not None and Path(file).is_file():
            digest.update(f"{name} {hashlib.sha256(Path(file).read_bytes()).hexdigest()}\n".encode())
    return digest.digest()


def _resolve(section: ModelSection, base: Path) -> tuple[Callable[..., Any] | None, dict[str, Any], list[str]]:
    """The function that builds the model, its options in the types that it takes them in, and all problems."""
    factory, problem = _packaged(section.name) if section.name is not None else _own(section.factory or "", base)
    if factory is None:
        return None, {}, [problem]
    options, problems = _options(factory, section.name or section.factory or "", section.options)
    return factory, options, problems


def _packaged(name: str) -> tuple[Callable[..., Any] | None, str]:
    if name in MODELS:
        return MODELS[name], ""
    return None, f"model.name: unknown model {name!r}{unknown(name, MODELS)}"


def _own(called: str, base: Path) -> tuple[Callable[..., Any] | None, str]:
    module_name, _, attribute = called.partition(":")
    if not module_name or not attribute:
        return None, f"model.factory: expected 'package.module:function', got {called!r}"
    # Beside the recipe, then in the working folder, then what is installed: in this order however Python was started,
    # since `python -m` puts the working folder first and a command of its own does not.
    own = dict.fromkeys((str(base.resolve()), str(Path.cwd())))
    sys.path[:] = [*own, *(folder for folder in sys.path if folder and folder not in own)]
    try:
        factory = getattr(importlib.import_module(module_name), attribute, None)
    except (Exception, SystemExit) as error:
        where = "" if isinstance(error, ImportError) else innermost_line(error)
        return None, f"model.factory: importing {module_name!r} raised {type(error).__name__}: {error}{where}"
    if not callable(factory):
        near = nearest(attribute, dir(sys.modules[module_name]))
        return None, f"model.factory: module {module_name!r} has no function {attribute!r}{near}"
    return factory, ""


def _options(factory: Callable[..., Any], called: str, options: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`options` converted to the factory's annotated types, and a problem for every one that does not fit."""
    parameters = _parameters(factory)
    known = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    hints = _annotations(factory)
    problems, converted = [], {}
    for name, value in options.items():
        path = f"model.options.{name}"
        if name not in known and not takes_any:
            problems.append(f"{path}: unknown option of {called}{unknown(name, sorted(known))}")
            continue
        try:
            converted[name], problem = convert(value, hints.get(name, Any))
        except TypeError:
            # A type that msgspec has no rule for: the factory itself is to judge the value.
            converted[name], problem = value, None
        if problem is not None:
            problems.append(f"{path}: {problem}")
    required = {p.name for p in parameters if p.default is p.empty and p.name in known}
    problems += [f"model.options.{name}: {called} needs it" for name in sorted(required - options.keys())]
    if not problems and factory in MODELS.values():
        problems = [f"model.options.{name}: {text}" for name, text in option_conflicts(factory, converted).items()]
    return converted, problems


def _parameters(factory: Callable[..., Any]) -> list[inspect.Parameter]:
    """What a factory takes after the shape of inputs and the number of outputs; anything, if it does not say."""
    try:
        return list(inspect.signature(factory).parameters.values())[2:]
    except (TypeError, ValueError):
        return [inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)]


def _annotations(factory: Callable[..., Any]) -> dict[str, Any]:
    """The annotated types by argument, limits included; empty where there are none that can be evaluated here."""
    function = factory.__init__ if inspect.isclass(factory) else factory
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # an annotation in quotes may be any expression, and evaluating it may raise anything
        return {}
