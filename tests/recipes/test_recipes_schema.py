"""What makes two recipes the same run."""

from __future__ import annotations

import inspect
import re

import msgspec
import pytest

from ddp_bp import optim
from ddp_bp.recipes import Recipe, load_recipe
from ddp_bp.recipes.load import decode, encode
from ddp_bp.recipes.schema import OPTIMIZER_ARGUMENTS, OptimizerSection, differences, identity

BASE = (
    "model={name = 'mlp', options = {hidden = [256, 128]}}",
    "data={name = 'digits', eval_fraction = 0.2}",
    "train={epochs = 3, batch_size = 64, shards = 4, seed = 1}",
    "optimizer={name = 'adam'}",
    "checkpoint={}",
)


def recipe(*overrides: str) -> Recipe:
    return load_recipe("digits", (*BASE, *overrides))[0]


CHANGEABLE = [
    "title=other",
    "train.epochs=1",
    "train.max_steps=5",
    "train.eval_every_epochs=2",
    "checkpoint.every_steps=1",
    "checkpoint.every_seconds=1.5",
    "checkpoint.keep=9",
    "checkpoint.keep_best=false",
    "coordinator.host=0.0.0.0",
    "coordinator.port=1234",
    "coordinator.http_port=1235",
]
FIXED = [
    ("model.options.hidden=[3]", "model.options.hidden: [256, 128] -> [3]"),
    ("model.options.new=1", "model.options.new: None -> 1"),
    ("data.eval_fraction=0.5", "data.eval_fraction: 0.2 -> 0.5"),
    ("data.standardize=true", "data.standardize: False -> True"),
    ("train.batch_size=63", "train.batch_size: 64 -> 63"),
    ("train.shards=3", "train.shards: 4 -> 3"),
    ("train.seed=0", "train.seed: 1 -> 0"),
    ("train.eval_batch_size=3", "train.eval_batch_size: 256 -> 3"),
    ("optimizer.name=adamw", "optimizer.name: 'adam' -> 'adamw'"),
    ("optimizer.eps=0.5", "optimizer.eps: None -> 0.5"),
]


@pytest.mark.parametrize("override", CHANGEABLE)
def test_what_may_change_between_starts_changes_no_identity(override: str) -> None:
    changed = recipe(override)
    assert changed != recipe()
    assert differences(recipe(), changed) == []
    assert identity(changed) == identity(recipe())


@pytest.mark.parametrize(("override", "line"), FIXED)
def test_anything_else_is_another_run_and_is_named(override: str, line: str) -> None:
    changed = recipe(override)
    assert differences(recipe(), changed) == [line]
    assert len(differences(changed, recipe())) == 1
    assert identity(changed) != identity(recipe())


def test_all_differences_are_named_in_order() -> None:
    changed = recipe(*(override for override, _ in FIXED), *CHANGEABLE)
    assert differences(recipe(), changed) == sorted(line for _, line in FIXED)


def test_identity_survives_the_disk() -> None:
    first = recipe("optimizer.betas=[0.8, 0.9]")
    stored = decode(encode(first), "recipe.json")
    assert identity(stored) == identity(first)
    assert differences(stored, first) == []
    assert re.fullmatch("[0-9a-f]{16}", identity(first))


@pytest.mark.parametrize(("name", "kind"), [("sgd", optim.SGD), ("adam", optim.Adam), ("adamw", optim.AdamW)])
def test_every_argument_of_an_optimizer_can_be_set_and_no_other(name: str, kind: type) -> None:
    # A recipe is trained to make its loss small, so that `maximize` would only mean to fail.
    takes = set(inspect.signature(kind).parameters) - {"params", "lr", "allocate", "maximize"}
    assert set(OPTIMIZER_ARGUMENTS[name]) == takes
    assert takes <= {field.name for field in msgspec.structs.fields(OptimizerSection)}


def test_only_arguments_that_the_recipe_names_are_passed_on() -> None:
    assert OptimizerSection(name="sgd", momentum=0.0, nesterov=False).arguments() == {
        "momentum": 0.0,
        "nesterov": False,
    }
    assert OptimizerSection(name="adam").arguments() == {}
    assert OptimizerSection(name="adamw", betas=(0.5, 0.6), eps=1.0).arguments() == {"betas": (0.5, 0.6), "eps": 1.0}
