"""What the options of models may be, and the check of a call against the annotations that say so.

A recipe's options are checked before the model is called; this check is for scripts. It must not know any model.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import msgspec
from msgspec import Meta

from ddp_bp.errors import InputError
from ddp_bp.nn.module import Module
from ddp_bp.nn.normalization import BatchNorm2d, SyncBatchNorm

Size = Annotated[int, Meta(ge=1)]
Shape = Annotated[tuple[Size, ...], Meta(min_length=1)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]

# Over the shard at hand, or over all shards of the batch.
BatchNorm = Literal["batch", "sync"]
BATCH_NORMS: Mapping[str, Callable[[int], Module]] = MappingProxyType({"batch": BatchNorm2d, "sync": SyncBatchNorm})

P = ParamSpec("P")
R = TypeVar("R")


# All options by name, those that are not given with their defaults, and what is wrong with some of them, by name.
Conflicts = Callable[[dict[str, Any]], dict[str, str]]


def checked(build: Callable[P, R]) -> Callable[P, R]:
    """`build(input_shape, num_outputs, **options)` that raises InputError, listing all that its annotations refuse.

    What they cannot say of options, alone or together, a function `build.conflicts` may: it is asked once all options
    have the right types.
    """

    @functools.wraps(build)
    def check(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = typing.get_type_hints(build, include_extras=True)
        given = {**dict(zip(("input_shape", "num_outputs"), args, strict=False)), **kwargs}
        problems = [
            problem for name, value in given.items() if (problem := _problem(name, value, hints.get(name, Any)))
        ]
        if not problems:
            found = option_conflicts(check, kwargs)
            problems = [f"{name}: {problem}" for name, problem in found.items()]
        if problems:
            raise InputError(f"{build.__name__}: {'; '.join(problems)}")
        return build(*args, **kwargs)

    return check


def option_conflicts(build: Callable[..., Any], options: dict[str, Any]) -> dict[str, str]:
    """What `build.conflicts`, if it has one, finds wrong with `options` and the defaults of the others, by name."""
    conflicts: Conflicts | None = getattr(build, "conflicts", None)
    if conflicts is None:
        return {}
    parameters = list(inspect.signature(build).parameters.values())[2:]
    return conflicts({p.name: options.get(p.name, p.default) for p in parameters})


def image_shape(called: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, height, width). Raises InputError if `input_shape` is not that of an image."""
    if len(input_shape) != 3:
        raise InputError(
            f"{called} takes images, with an input_shape of channels, height and width, and got {tuple(input_shape)}; "
            "if these are images, data.input_shape gives them their shape ([1, 8, 8] for digits)"
        )
    channels, height, width = input_shape
    return channels, height, width


def _problem(name: str, value: Any, hint: Any) -> str | None:
    """What is wrong with `value` for an argument annotated with `hint`, or None."""
    try:
        msgspec.convert(value, type=hint)
    except msgspec.ValidationError as error:
        if typing.get_origin(hint) is Literal:
            choices = [str(choice) for choice in typing.get_args(hint)]
            near = difflib.get_close_matches(str(value), choices, n=1)
            suggestion = f"; did you mean {near[0]!r}?" if near else ""
            return f"{name} is one of {', '.join(choices)}, and got {value!r}{suggestion}"
        return f"{name} = {value!r}: {str(error).split(' - at ')[0].lower()}"
    return None
