"""The settings of optimizers: which values each takes, and the groups of parameters that have settings of their own."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from ddp_bp.engine.flat import FlatParameters
from ddp_bp.engine.tensor import Parameter
from ddp_bp.errors import InputError

# Checks a value that a user gave for the setting of that name, and returns the value to use.
Check = Callable[[str, Any], Any]
Params = FlatParameters | Iterable[tuple[str, Parameter] | Parameter] | Iterable[dict[str, Any]]

# What schedules leave in a group, as in PyTorch: the rate that they start from.
INITIAL_LR = "initial_lr"


class ParameterGroup(MutableMapping[str, Any]):
    """The settings of some parameters, read and written as in PyTorch: `group["lr"] = 0.1`.

    `group["params"]` is the tuple of these parameters, and fixed. Every value is checked as it is set: InputError.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        settings: Mapping[str, Any],
        accept: Callable[[Mapping[str, Any]], dict[str, Any]],
    ) -> None:
        """`accept` checks all settings together, and returns the values to use."""
        self.parameters = tuple(parameters)
        self._accept = accept
        self.settings = accept(settings)

    def __getitem__(self, key: str) -> Any:
        return self.parameters if key == "params" else self.settings[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "params":
            raise InputError("the parameters of a group are fixed when the optimizer is made")
        self.settings = self._accept({**self.settings, key: value})

    def __delitem__(self, key: str) -> None:
        raise InputError(f"{key!r} cannot be taken out of a parameter group")

    def __iter__(self) -> Iterator[str]:
        return iter(("params", *self.settings))

    def __len__(self) -> int:
        return 1 + len(self.settings)

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
        return f"ParameterGroup({len(self.parameters)} parameters, {settings})"


def read_params(params: Params) -> tuple[FlatParameters, list[tuple[tuple[Parameter, ...], dict[str, Any]]]]:
    """All parameters as one vector, and per group its parameters and the settings given for it.

    Parameters of a list of groups, `[{"params": ..., "lr": ...}, ...]`, are in the order of the groups, unless they
    share a vector already. Raises InputError for what is not a list of groups, or a parameter in two of them.
    """
    if isinstance(params, FlatParameters):
        return params, [(params.parameters, {})]
    items: list[Any] = list(params)
    if not any(isinstance(item, Mapping) for item in items):
        flat = FlatParameters.of(items)
        return flat, [(flat.parameters, {})]
    named: list[tuple[str, Parameter]] = []
    groups = []
    owner: dict[int, int] = {}
    for number, item in enumerate(items):
        if not isinstance(item, Mapping) or "params" not in item:
            raise InputError(f"parameter group {number}: expected a dict with 'params', got {item!r:.80}")
        members = _read_group(number, item["params"], len(named))
        for name, parameter in members:
            if owner.setdefault(id(parameter), number) != number:
                raise InputError(f"parameter {name!r} is in parameter groups {owner[id(parameter)]} and {number}")
        named += members
        settings = {key: value for key, value in item.items() if key != "params"}
        groups.append((tuple({id(parameter): parameter for _, parameter in members}.values()), settings))
    if len({name for name, _ in named}) < len(owner):
        # Groups of several modules may use the same names.
        named = [(f"{owner[id(parameter)]}.{name}", parameter) for name, parameter in named]
    return FlatParameters.of(named), groups


def _read_group(number: int, params: Any, offset: int) -> list[tuple[str, Parameter]]:
    members = []
    # As in PyTorch, a single parameter may stand for itself in a group.
    for position, item in enumerate([params] if isinstance(params, Parameter) else params):
        name, parameter = item if isinstance(item, tuple) else (str(offset + position), item)
        if not isinstance(parameter, Parameter):
            raise InputError(f"parameter group {number}: {name!r} is a {type(parameter).__name__} and not a Parameter")
        members.append((name, parameter))
    return members


def check_settings(called: str, checks: Mapping[str, Check], settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` after the check of each; InputError names the first that is unknown or cannot be used."""
    accepted = {}
    for name, value in settings.items():
        check = non_negative if name == INITIAL_LR else checks.get(name)
        if check is None:
            nearest = difflib.get_close_matches(name, checks, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise InputError(f"{called} has no setting {name!r}; it takes {', '.join(checks)}{hint}")
        accepted[name] = check(name, value)
    return accepted


def non_negative(name: str, value: Any) -> float:
    if not (_is_real(value) and math.isfinite(value) and value >= 0):
        raise InputError(f"an optimizer takes a finite {name} of at least 0 and got {value!r}")
    return float(value)


def finite(name: str, value: Any) -> float:
    if not (_is_real(value) and math.isfinite(value)):
        raise InputError(f"an optimizer takes a finite {name} and got {value!r}")
    return float(value)


def fraction(name: str, value: Any) -> float:
    if not (_is_real(value) and 0.0 <= value <= 1.0):
        raise InputError(f"an optimizer takes a {name} in [0, 1] and got {value!r}")
    return float(value)


def two_betas(name: str, value: Any) -> tuple[float, float]:
    if not (isinstance(value, Sequence) and len(value) == 2):
        raise InputError(f"an optimizer takes two {name} and got {value!r}")
    for position, beta in enumerate(value):
        if not (_is_real(beta) and 0.0 <= beta < 1.0):
            raise InputError(f"an optimizer takes {name}[{position}] in [0, 1) and got {beta!r}")
    return float(value[0]), float(value[1])


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"an optimizer takes True or False for {name} and got {value!r}")
    return bool(value)


def _is_real(value: Any) -> bool:
    # A NumPy scalar would carry its dtype into the arithmetic, so all numbers become Python's.
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
