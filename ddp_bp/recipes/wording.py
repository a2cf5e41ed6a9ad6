"""One value against its declared type: converted, or what is wrong with it, in words that every key has in common.

Recipe keys and the options of models are checked here alike. This module knows neither.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable
from typing import Any

import msgspec


def convert(value: Any, kind: Any) -> tuple[Any, str | None]:
    """`value` as the annotated type `kind`, and None; or None, and `expected ..., got ...`.

    Raises TypeError for a type that msgspec has no rule for.
    """
    try:
        return msgspec.convert(value, type=kind), None
    except msgspec.ValidationError as error:
        choices = _choices(kind)
        expected = f"expected one of {', '.join(choices)}" if choices else _plain(str(error))
        return None, f"{expected}, got {value!r}{nearest(str(value), choices)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)`, or nothing if no known name is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def unknown(name: str, known: Iterable[str]) -> str:
    """What to say after `unknown ...`: the nearest known name, else all of them."""
    return nearest(name, known) or f"; known: {', '.join(known) or 'none'}"


def _choices(kind: Any) -> list[str]:
    """The values that a `Literal` takes, if `kind` is one, or one or None."""
    if typing.get_origin(kind) is typing.Literal:
        return [str(choice) for choice in typing.get_args(kind)]
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
)


def _plain(message: str) -> str:
    """msgspec's message as part of a sentence, in terms of TOML, and where if it is not the value itself."""
    text, _, place = message.partition(" - at `$")
    text = text.split(", got")[0].removesuffix(".0")
    for theirs, ours in _TERMS:
        text = text.replace(theirs, ours)
    text = text[:1].lower() + text[1:]
    return f"{text} at {place.rstrip('`').lstrip('.')}" if place else text
