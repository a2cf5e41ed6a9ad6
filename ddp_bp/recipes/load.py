"""Reads a recipe, applies `--set key=value` overrides, and reports every problem at once with its path.

It checks names, types and limits; whether the data and the model fit is found out by those who load them.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from ddp_bp.errors import RecipeError
from ddp_bp.recipes.schema import DataSection, ModelSection, Recipe
from ddp_bp.recipes.section import Section
from ddp_bp.recipes.wording import convert, nearest, unknown

# What `tomllib` raises: TOMLDecodeError is a ValueError, and so is what an integer of thousands of digits gives.
_NOT_TOML = (ValueError, RecursionError)


def packaged_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with the package, sorted."""
    files = resources.files("ddp_bp.recipes").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_recipe(
    name_or_path: str,
    overrides: tuple[str, ...] = (),
    check_model: Callable[[ModelSection, Path], list[str]] | None = None,
    check_data: Callable[[DataSection], list[str]] | None = None,
) -> tuple[Recipe, Path]:
    """Read and validate a recipe.

    Args:
        name_or_path: a packaged name (`digits`), or the path of a TOML file: what has a slash or ends in `.toml`.
        overrides: `section.key=value`, the value written as in TOML; what is not TOML counts as a plain string.
        check_model: gives the problems of a model section that is right as far as this room can tell, so that they
            are reported together with those of other sections; relative names start at the folder.
        check_data: the same for a data section, whose files it must not look at.

    Returns:
        The recipe and the folder that relative paths in it start from.

    Raises:
        RecipeError: with every problem found: unknown names (and the nearest valid one), wrong types, values out of
            their limits, keys that do not go together, overrides that cannot be read.
    """
    text, base = _read(name_or_path)
    try:
        table = tomllib.loads(text)
    except _NOT_TOML as error:
        raise RecipeError(f"recipe {name_or_path}", [f"not valid TOML: {error}"]) from None
    problems = [problem for text in overrides if (problem := _override(table, text))]
    recipe, found = validate(table)
    problems += found
    if check_model is not None:
        model = _convert(ModelSection, table.get("model", {}), "model.", [])
        problems += [] if model is None else check_model(model, base)
    if check_data is not None:
        data = _convert(DataSection, table.get("data", {}), "data.", [])
        problems += [] if data is None else check_data(data)
    if problems or recipe is None:
        raise RecipeError(f"recipe {name_or_path}", problems)
    return recipe, base


def validate(table: dict[str, Any]) -> tuple[Recipe | None, list[str]]:
    """The recipe in `table`, or None, and the list of all problems."""
    problems: list[str] = []
    recipe: Recipe | None = _convert(Recipe, table, "", problems)
    return recipe, problems


def decode(data: bytes, source: str) -> Recipe:
    """The recipe that `encode` wrote to a run directory. Raises RecipeError naming `source`."""
    try:
        return msgspec.json.decode(data, type=Recipe)
    except msgspec.MsgspecError as error:
        raise RecipeError(source, [f"not a resolved recipe of this version: {error}"]) from None


def encode(recipe: Recipe) -> bytes:
    """The resolved recipe as indented JSON, every key written out."""
    return msgspec.json.format(msgspec.json.encode(recipe), indent=2) + b"\n"


def _read(name_or_path: str) -> tuple[str, Path]:
    if "/" in name_or_path or os.sep in name_or_path or name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        try:
            return path.read_text(encoding="utf-8"), path.parent
        except FileNotFoundError:
            raise RecipeError(f"recipe {name_or_path}", ["no such file"]) from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {name_or_path}", [f"cannot be read: {error}"]) from None
    names = packaged_recipes()
    if name_or_path not in names:
        raise RecipeError(
            f"recipe {name_or_path}",
            [
                f"unknown recipe{nearest(name_or_path, names)}; packaged: {', '.join(names)}; "
                "or give the path of a .toml file"
            ],
        )
    return resources.files("ddp_bp.recipes").joinpath(f"{name_or_path}.toml").read_text(encoding="utf-8"), Path()


def _override(table: dict[str, Any], text: str) -> str | None:
    """Set one key of `table`; returns the problem, if any."""
    key, equals, value_text = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        return f"--set {text}: expected key=value, for example --set optimizer.lr=0.01"
    if not _is_unicode(text):
        return f"--set {text!r}: expected text in UTF-8"
    try:
        value = tomllib.loads(f"value = {value_text}")["value"]
    except _NOT_TOML:
        value = value_text.strip()
    for part in path[:-1]:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            return f"--set {text}: {part} is a value, not a section"
        table = inner
    table[path[-1]] = value
    return None


def _convert(struct: type[Section] | type[Recipe], table: Any, prefix: str, problems: list[str]) -> Any:
    """Build `struct` from `table` field by field, so that one wrong key does not hide the next; None on any problem.

    A section's conflicts are looked for once its own keys are right: before, they might only repeat a misspelt name.
    """
    if not isinstance(table, dict):
        problems.append(f"{prefix.removesuffix('.')}: expected a section, got {table!r}")
        return None
    num_before = len(problems)
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    kind = "key" if prefix else "section"
    problems += [f"{prefix}{key}: unknown {kind}{unknown(key, fields)}" for key in table if key not in fields]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        path = prefix + name
        if isinstance(field.type, type) and issubclass(field.type, Section):
            values[name] = _convert(field.type, table.get(name, {}), f"{path}.", problems)
            continue
        if name not in table:
            continue
        if not _is_storable(table[name]):
            problems.append(f"{path}: expected finite numbers, and dates as strings, got {table[name]!r}")
            continue
        values[name], problem = convert(table[name], field.type)
        if problem is not None:
            problems.append(f"{path}: {problem}")
    if len(problems) > num_before:
        return None
    made = struct(**values)
    problems += made.conflicts()
    return made if len(problems) == num_before else None


def _is_storable(value: Any) -> bool:
    """Whether a value of TOML reads back from JSON as it is, as it must from a run directory."""
    if isinstance(value, dict):
        return all(map(_is_storable, value.values()))
    if isinstance(value, list):
        return all(map(_is_storable, value))
    return math.isfinite(value) if isinstance(value, float) else isinstance(value, str | int)


def _is_unicode(text: str) -> bool:
    # The bytes of an argument that are not UTF-8 come as lone surrogates, which no file or message can hold.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
