"""Errors of functions of tensors that were given something they cannot work with.

Operations check what they get and name themselves. Functions in front of them look at their arguments first: what
Python or NumPy objects to there becomes an error that names the function, what it got and what it takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np

from ddp_bp.engine.ops.operation import describe
from ddp_bp.engine.value import Value
from ddp_bp.errors import DdpError, DtypeError, InputError, ShapeError

P = ParamSpec("P")
R = TypeVar("R")


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, whose errors of Python and NumPy become a DtypeError or ShapeError."""

    @wraps(function)
    def called(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return function(*arguments, **named)
        except DdpError:
            raise
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
            problem = _problem(function, arguments, named, error)
            if problem is None:
                raise
            raise problem from error

    return called


def number(name: str, argument: str, given: object) -> float:
    """`given` as a float. Raises InputError if it is no plain number: a tensor would get no gradient here."""
    if isinstance(given, bool) or not isinstance(given, int | float | np.integer | np.floating):
        raise InputError(f"{name} takes a number as {argument} and got {_described(given)}")
    return float(given)


def _problem(
    function: Callable[..., object], arguments: tuple[object, ...], named: dict[str, object], error: Exception
) -> DdpError | None:
    """None if the arguments do not even fit the signature, which Python itself says best."""
    signature = inspect.signature(function)
    try:
        bound = signature.bind(*arguments, **named)
    except TypeError:
        return None
    got = ", ".join(f"{name} {_described(value)}" for name, value in bound.arguments.items() if name != "self")
    takes = ", ".join(_declared(parameter) for name, parameter in signature.parameters.items() if name != "self")
    kind = ShapeError if isinstance(error, ValueError) else DtypeError
    return kind(f"{function.__name__} got {got}; it takes ({takes}) ({error})")


def _declared(parameter: inspect.Parameter) -> str:
    text = f"{parameter.name}: {parameter.annotation}"
    return text if parameter.default is parameter.empty else f"{text} = {parameter.default!r}"


def _described(value: object) -> str:
    if isinstance(value, Value):
        return describe(value._array)
    if isinstance(value, np.ndarray):
        return f"an array {describe(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
