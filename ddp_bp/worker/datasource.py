"""From a recipe's data section to data, and what is wrong with either in the recipe's words. Knows no model."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import msgspec

from ddp_bp.data import DataSpec, Loaded, load
from ddp_bp.data.augment import Augment
from ddp_bp.errors import DataError
from ddp_bp.recipes.schema import DataSection

# Where a recipe has another name for a setting of the data than the data themselves.
_SEED, _SPLIT_SEED = "seed", "split_seed"
_SETTING = re.compile(rf"`({'|'.join(field.name for field in fields(DataSpec))})((?:\.\w+)*)`")


def data_problems(section: DataSection) -> list[str]:
    """Every reason, one line each with its key, why these settings cannot be used, whatever the files hold."""
    return [_in_recipe(problem) for problem in _spec(section).problems()]


def load_data(section: DataSection, base: Path, *, check: bool, cache: Path | None = None) -> tuple[Loaded, list[str]]:
    """The data of `section`, and why they cannot be augmented as it says, one line each with its key.

    Args:
        check: whether to look at every value for NaN and infinity.
        cache: the user's cache folder, where downloaded data sets are.

    Raises:
        DataError: the data cannot be trained on.
    """
    spec = _spec(section)
    try:
        try:
            return load(spec, base, cache=cache, check=check), []
        except DataError:
            # What is wrong with the augmentation alone must not hide what else does not fit the data.
            plain = replace(spec, augment=Augment())
            data = load(plain, base, cache=cache, check=check)
            problems = [_in_recipe(problem) for problem in spec.augment.shape_problems(data.input_shape)]
            if not problems:
                raise
            return data, problems
    except DataError as error:
        raise DataError(_in_recipe(str(error))) from error


def _spec(section: DataSection) -> DataSpec:
    settings = msgspec.to_builtins(section)
    settings[_SEED] = settings.pop(_SPLIT_SEED)
    settings["target"] = None if section.target is None else str(section.target)
    return msgspec.convert(settings, DataSpec)


def _in_recipe(text: str) -> str:
    """`text` with the paths that settings have in a recipe."""
    return _SETTING.sub(lambda found: f"data.{_SPLIT_SEED if found[1] == _SEED else found[1]}{found[2]}", text)
