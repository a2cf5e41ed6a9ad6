"""One value against its declared type: converted, or what is wrong with it, in words that every key has in common.

Recipe keys and the options of models are checked here alike. This module knows neither.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec


def convert(value: Any, kind: Any) -> tuple[Any, str | None]:
    """`value` as the annotated type `kind`, and None; or None, and `expected ..., got ...`.

    A string becomes a Path where one is expected. Raises TypeError for any other type that msgspec has no rule for.
    """
    try:
        converted = msgspec.convert(value, type=kind, dec_hook=_path)
    except NotImplementedError as error:
        raise TypeError(str(error)) from None
    except msgspec.ValidationError as error:
        choices = _choices(kind)
        expected = f"expected one of {', '.join(choices)}" if choices else _plain(str(error))
        return None, f"{expected}, got {value!r}{nearest(str(value), choices)}"
    left_out = _left_out(value, converted)
    return (None, left_out) if left_out else (converted, None)


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)`, or nothing if no known name is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def unknown(name: str, known: Iterable[str]) -> str:
    """What to say after `unknown ...`: the nearest known name, else all of them."""
    return nearest(name, known) or f"; known: {', '.join(known) or 'none'}"


def _path(kind: type, value: Any) -> Any:
    """What msgspec asks for a type that it has no rule for."""
    if kind is not Path:
        # Of ValueError and TypeError msgspec would make a wrong value.
        raise NotImplementedError(f"no rule for {kind}")
    # What is no string, msgspec itself refuses then.
    return Path(value) if isinstance(value, str) else value


def _left_out(given: Any, taken: Any) -> str | None:
    """What to say if a table in `given` has keys that its type does not have, so that `taken` is without them."""
    if isinstance(given, list):
        # A set has lost the order, and holds no tables.
        pairs = list(zip(given, taken, strict=True)) if isinstance(taken, list | tuple) else []
    elif isinstance(given, dict) and isinstance(taken, dict) and len(given) == len(taken):
        # Nothing is missing, though keys may have been converted.
        pairs = list(zip(given.values(), taken.values(), strict=True))
    elif isinstance(given, dict):
        known = _keys(taken)
        for key in given:
            if key not in known:
                return f"unknown key {key!r}{unknown(key, known)}"
        pairs = [(value, known[key]) for key, value in given.items()]
    else:
        return None
    return next((problem for pair in pairs if (problem := _left_out(*pair))), None)


def _keys(taken: Any) -> dict[str, Any]:
    """The keys that a table may have that was taken as `taken`, with the values that it has."""
    if isinstance(taken, msgspec.Struct):
        names = zip(taken.__struct_encode_fields__, taken.__struct_fields__, strict=True)
        return {key: getattr(taken, name) for key, name in names}
    if dataclasses.is_dataclass(taken):
        return {field.name: getattr(taken, field.name) for field in dataclasses.fields(taken)}
    return dict(taken) if isinstance(taken, dict) else {}


def _choices(kind: Any) -> list[str]:
    """The values that a `Literal` or an enumeration takes, if `kind` is one, or one or None."""
    if typing.get_origin(kind) is typing.Literal:
        return [str(choice) for choice in typing.get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [str(member.value) for member in kind]
    inner = [part for part in typing.get_args(kind) if part is not type(None)]
    return _choices(inner[0]) if len(inner) == 1 and len(typing.get_args(kind)) == 2 else []


_TERMS = (
    (" | null`", "`"),
    ("`str`", "a string"),
    ("`int`", "a whole number"),
    ("`float`", "a number"),
    ("`bool`", "true or false"),
    ("`array`", "an array"),
    ("`object`", "a table"),
    ("`Path`", "a path"),
    ("object missing required field", "expected a table with the key"),
    ("object contains unknown field", "unknown key"),
    ("invalid enum value", "expected one of the values that are allowed, and not"),
)


def _plain(message: str) -> str:
    """msgspec's message as part of a sentence, in terms of TOML, and where if it is not the value itself."""
    text, _, place = message.partition(" - at `$")
    text = text.split(", got")[0].removesuffix(".0")
    text = text[:1].lower() + text[1:]
    for theirs, ours in _TERMS:
        text = text.replace(theirs, ours)
    return f"{text} at {place.rstrip('`').lstrip('.')}" if place else text
