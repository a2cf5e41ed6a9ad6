"""What makes two recipes the same run."""

from __future__ import annotations

import re

import pytest

from ddp_bp.recipes import Recipe, load_recipe
from ddp_bp.recipes.load import decode, encode
from ddp_bp.recipes.schema import differences, identity, resolve

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
    "sample.characters=7",
    "checkpoint.every_steps=1",
    "checkpoint.every_seconds=1.5",
    "checkpoint.keep=9",
    "checkpoint.keep_best=false",
    "coordinator.host=0.0.0.0",
    "exchange.overlap=on",
    "exchange.bucket_bytes=1000",
    "coordinator.port=1234",
    "coordinator.http_port=1235",
    "fault.nonfinite_limit=0",
    "fault.compare_every_steps=0",
    "fault.audit=0.5",
    "fault.spares=1",
    "blas.kernels=Haswell",
    "blas.allow_mixed=true",
]
FIXED = [
    ("exchange.compression=bf16", "exchange.compression: 'none' -> 'bf16'"),
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
    ("schedule.warmup_epochs=0.5", "schedule.warmup_epochs: None -> 0.5"),
    ("loss.label_smoothing=0.5", "loss.label_smoothing: None -> 0.5"),
    ("train.ema_decay=0.5", "train.ema_decay: None -> 0.5"),
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
    # Audits go neither with compression nor with mixed kernels, and spares not with compression.
    together = [override for override in CHANGEABLE if not override.startswith(("fault.audit", "fault.spares"))]
    changed = recipe(*(override for override, _ in FIXED), *together)
    assert differences(recipe(), changed) == sorted(line for _, line in FIXED)


def test_identity_survives_the_disk() -> None:
    first = recipe("optimizer.betas=[0.8, 0.9]")
    stored = decode(encode(first), "recipe.json")
    assert identity(stored) == identity(first)
    assert differences(stored, first) == []
    assert re.fullmatch("[0-9a-f]{16}", identity(first))


def test_evaluations_may_change_unless_a_plateau_is_found_by_them() -> None:
    first, second = recipe("schedule.name=plateau"), recipe("schedule.name=plateau", "train.eval_every_epochs=2")
    assert differences(first, second) == ["train.eval_every_epochs: 1 -> 2"]
    assert identity(first) != identity(second)


def lengths(made: Recipe) -> tuple[float | None, int | None]:
    return made.schedule.epochs, made.schedule.max_steps


def test_a_schedule_is_as_long_as_the_first_start_was_to_train() -> None:
    first = resolve(recipe("schedule.name=cosine"), 2, None)
    assert lengths(first) == (3.0, None)
    assert lengths(resolve(recipe("schedule.name=cosine", "train.max_steps=9"), 2, None)) == (3.0, 9)
    prolonged = resolve(recipe("schedule.name=cosine", "train.epochs=5", "train.max_steps=7"), 2, first)
    assert lengths(prolonged) == (3.0, None)
    assert differences(first, prolonged) == []
    assert identity(first) == identity(prolonged)
    named = resolve(recipe("schedule.name=cosine", "schedule.epochs=5"), 2, first)
    assert differences(first, named) == ["schedule.epochs: 3.0 -> 5.0"]
    assert lengths(resolve(recipe("schedule.name=cosine", "schedule.max_steps=5"), 2, None)) == (None, 5)
    assert lengths(resolve(recipe(), 2, None)) == (None, None), "a constant rate has no length"
