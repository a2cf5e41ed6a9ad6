"""Reading recipes: every problem at once, and overrides that are taken or reported, whatever is in them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ddp_bp.errors import RecipeError
from ddp_bp.recipes import Recipe, load_recipe, packaged_recipes
from ddp_bp.recipes.load import decode, encode, validate
from ddp_bp.recipes.schema import ModelSection

GOOD: dict[str, Any] = {"model": {"name": "mlp"}, "data": {"name": "digits"}}


def write(folder: Path, text: str) -> str:
    path = folder / "own.toml"
    path.write_text(text)
    return str(path)


def problems_of(table: dict[str, Any]) -> list[str]:
    recipe, problems = validate(table)
    assert (recipe is None) == bool(problems)
    return problems


def problems_with(*overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as raised:
        load_recipe("digits", overrides)
    return raised.value.problems


def value_of(recipe: Recipe, key: str) -> Any:
    value: Any = msgspec.to_builtins(recipe)
    for part in key.split("."):
        value = value[part]
    return value


# ---- packaged recipes and files


@pytest.mark.parametrize("name", packaged_recipes())
def test_every_packaged_recipe_loads_and_says_what_it_is(name: str) -> None:
    recipe, base = load_recipe(name)
    assert recipe.title
    assert base == Path()
    assert decode(encode(recipe), name) == recipe


def test_a_file_is_found_by_its_path_and_its_folder_is_the_base(tmp_path: Path) -> None:
    text = '[model]\nname = "mlp"\n[data]\npath = "x.csv"\n'
    recipe, base = load_recipe(write(tmp_path, text))
    assert (recipe.data.path, base) == ("x.csv", tmp_path)
    (tmp_path / "no_suffix").write_text(text)
    assert load_recipe(str(tmp_path / "no_suffix"))[0] == recipe


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("digit", "unknown recipe (did you mean 'digits'?); packaged: diabetes, digits, "),
        ("zzz", "unknown recipe; packaged: diabetes, digits, "),
        ("", "unknown recipe"),
        ("{folder}/none.toml", "no such file"),
        ("{folder}/", "cannot be read: "),
        ("{folder}/latin.toml", "cannot be read: 'utf-8' codec"),
        ("{folder}/broken.toml", "not valid TOML: Expected ']'"),
        ("{folder}/digits.toml", "not valid TOML: Exceeds the limit"),
        ("{folder}/deep.toml", "not valid TOML: "),
    ],
)
def test_a_recipe_that_cannot_be_read_is_one_error(tmp_path: Path, name: str, part: str) -> None:
    (tmp_path / "latin.toml").write_bytes('title = "caf\xe9"'.encode("latin-1"))
    (tmp_path / "broken.toml").write_text("[model\n")
    (tmp_path / "digits.toml").write_text(f"[train]\nseed = {'9' * 5000}\n")
    (tmp_path / "deep.toml").write_text(f"title = {'[' * 5000}\n")
    name = name.format(folder=tmp_path)
    with pytest.raises(RecipeError) as raised:
        load_recipe(name)
    assert raised.value.source == f"recipe {name}"
    [problem] = raised.value.problems
    assert part in problem


# ---- every problem at once


def test_every_problem_of_a_recipe_is_reported_at_once_with_its_path(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        titel = "x"
        data = 3
        [model]
        nmae = "mlp"
        [train]
        epochs = 0
        batch_size = 2.5
        seed = "one"
        [optimizer]
        name = "adamm"
        lr = -1.0
        betas = [0.9]
        [checkpoint]
        keep_best = 1
        [coordinator]
        http_port = 65536
        """,
    )
    with pytest.raises(RecipeError) as raised:
        load_recipe(path, ("optimizer.lrr=1", "train.epochs.x=1"))
    assert sorted(raised.value.problems) == sorted(
        [
            "--set train.epochs.x=1: epochs is a value, not a section",
            "titel: unknown section (did you mean 'title'?)",
            "data: expected a section, got 3",
            "model.nmae: unknown key (did you mean 'name'?)",
            "train.epochs: expected a whole number >= 1, got 0",
            "train.batch_size: expected a whole number, got 2.5",
            "train.seed: expected a whole number, got 'one'",
            "optimizer.lrr: unknown key (did you mean 'lr'?)",
            "optimizer.name: expected one of sgd, adam, adamw, rmsprop, adagrad, adadelta, nadam, lion, lars, lamb, "
            "got 'adamm' (did you mean 'adam'?)",
            "optimizer.lr: expected a number > 0, got -1.0",
            "optimizer.betas: expected an array of length 2, got [0.9]",
            "checkpoint.keep_best: expected true or false, got 1",
            "coordinator.http_port: expected a whole number <= 65535, got 65536",
        ]
    )
    assert str(raised.value).startswith(f"recipe {path} cannot be used:\n  ")


def test_conflicts_of_one_section_are_reported_beside_the_problems_of_another() -> None:
    table = {
        "data": {"name": "digits", "path": "x.csv"},
        "train": {"epoch": 3},
        "optimizer": {"name": "sgd", "betas": [0.9, 0.99], "eps": 1e-8, "nesterov": True},
    }
    others = "does not apply to optimizer 'sgd', which takes momentum, dampening, nesterov, weight_decay"
    assert sorted(problems_of(table)) == [
        "data: expected exactly one of data.name and data.path, got both",
        "model: expected exactly one of model.name and model.factory, got neither",
        f"optimizer.betas: {others}",
        f"optimizer.eps: {others}",
        "optimizer.nesterov: needs optimizer.momentum above 0 and optimizer.dampening 0",
        "train.epoch: unknown key (did you mean 'epochs'?)",
    ]
    assert problems_of({**GOOD, "model": {"name": "mlp", "factory": "a:b"}}) == [
        "model: expected exactly one of model.name and model.factory, got both"
    ]
    # A misspelt name is one problem and not two.
    assert problems_of({**GOOD, "model": {"nam": "mlp"}}) == ["model.nam: unknown key (did you mean 'name'?)"]
    assert problems_of({}) != [] and problems_of(GOOD) == []


def test_a_model_is_checked_beside_the_problems_of_other_sections_but_not_if_it_has_its_own(tmp_path: Path) -> None:
    seen = []

    def check(section: ModelSection, base: Path) -> list[str]:
        seen.append((section.name, section.options, base))
        return ["model.options.deep: too deep"]

    text = '[model]\nname = "mlp"\noptions = {deep = 9}\n[data]\nname = "digits"\n[train]\nepochs = 0\n'
    with pytest.raises(RecipeError) as raised:
        load_recipe(write(tmp_path, text), ("model.options.wide=2",), check)
    assert raised.value.problems == (
        "train.epochs: expected a whole number >= 1, got 0",
        "model.options.deep: too deep",
    )
    assert seen == [("mlp", {"deep": 9, "wide": 2}, tmp_path)]
    for override in ("model=3", "model.name=3", "model.nam=mlp", "model.factory=a:b"):
        with pytest.raises(RecipeError):
            load_recipe("digits", (override,), check)
    assert len(seen) == 1


def test_a_table_without_a_key_that_it_needs_is_said_in_words_of_toml() -> None:
    table = {**GOOD, "data": {"name": "digits", "augment": {"normalize": {"mean": [0.5]}}}}
    assert problems_of(table) == ["data.augment.normalize: expected a table with the key `std`, got {'mean': [0.5]}"]


def test_a_name_far_from_all_known_ones_lists_them() -> None:
    assert problems_of({**GOOD, "checkpoint": {"zzz": 1}}) == [
        "checkpoint.zzz: unknown key; known: every_steps, every_seconds, keep, keep_best"
    ]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("key", ["optimizer.lr", "checkpoint.every_seconds", "model.options", "data.eval_fraction"])
def test_numbers_that_json_cannot_hold_are_refused(key: str, value: float) -> None:
    section, name = key.split(".")
    table = {**GOOD, section: {**GOOD.get(section, {}), name: {"a": [value]} if name == "options" else value}}
    [problem] = problems_of(table)
    assert problem.startswith(f"{key}: expected finite numbers, and dates as strings, got ")


def test_dates_are_refused_and_integers_are_of_64_bits() -> None:
    assert "dates as strings" in problems_with("model.options.since=2026-01-31")[0]
    for key in ("train.seed", "data.split_seed", "train.epochs", "train.batch_size", "checkpoint.every_steps"):
        assert value_of(load_recipe("digits", (f"{key}={2**63 - 1}",))[0], key) == 2**63 - 1
        assert problems_with(f"{key}={2**63}") == (f"{key}: expected a whole number <= {2**63 - 1}, got {2**63}",)


# ---- overrides


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("optimizer.lr=0.5", "optimizer.lr", 0.5),
        ("optimizer.lr = 5e-1 # half", "optimizer.lr", 0.5),
        ("train.epochs=7", "train.epochs", 7),
        ("optimizer.lr=2", "optimizer.lr", 2.0),
        ("checkpoint.keep_best=false", "checkpoint.keep_best", False),
        ("optimizer.name=adamw", "optimizer.name", "adamw"),
        ('optimizer.name="adamw"', "optimizer.name", "adamw"),
        ("coordinator.host=10.0.0.1", "coordinator.host", "10.0.0.1"),
        ("title=a = b", "title", "a = b"),
        ("title=", "title", ""),
        ("model.options.hidden=[3, 4]", "model.options.hidden", [3, 4]),
        ("model.options.made.up=1", "model.options.made", {"up": 1}),
        ("train={epochs = 9}", "train.epochs", 9),
    ],
)
def test_an_override_is_written_as_in_toml_or_is_a_plain_string(override: str, key: str, expected: Any) -> None:
    assert value_of(load_recipe("digits", (override,))[0], key) == expected


def test_the_last_override_of_a_key_counts() -> None:
    assert load_recipe("digits", ("train.epochs=3", "train.epochs=4"))[0].train.epochs == 4


@pytest.mark.parametrize("override", ["", "=", "=3", "train.epochs", ".=1", "train.=1", ".epochs=1", "train..epochs=1"])
def test_an_override_that_is_no_key_and_value_is_reported_as_it_was_written(override: str) -> None:
    assert problems_with(override) == (f"--set {override}: expected key=value, for example --set optimizer.lr=0.01",)


sections = {field.name: field.type for field in msgspec.structs.fields(Recipe) if field.name != "title"}
keys = sorted(f"{section}.{field.name}" for section, kind in sections.items() for field in msgspec.structs.fields(kind))
texts = st.text(st.characters(), max_size=20)  # lone surrogates too: an argument that is not UTF-8
toml_values = st.one_of(
    texts,
    st.integers().map(str),
    st.floats().map(str),
    st.booleans().map(lambda value: str(value).lower()),
    st.lists(st.integers(-2, 300), max_size=3).map(str),
    texts.map(lambda value: json.dumps(value)),
    st.dates().map(str),
    st.sampled_from(["[" * 5000, "{a=" * 5000, "9" * 5000, "{}", "{name='x'}", "1\ntitle='y'", "1979-13-45"]),
)


@settings(max_examples=300, deadline=None)
@given(key=st.one_of(st.sampled_from(keys), st.text("abc.de_", max_size=8), texts), value=toml_values)
@example(key="train.seed", value="9" * 5000)
@example(key="title", value="[" * 5000)
@example(key="optimizer.name", value="\udc80")
@example(key="optimizer.lr", value="inf")
def test_any_override_sets_its_key_or_is_reported(key: str, value: str) -> None:
    override = f"{key}={value}"
    try:
        recipe, _ = load_recipe("digits", (override,))
    except RecipeError as error:
        assert error.problems
        # Only the key that was named, or its section, is to blame.
        section = key.partition("=")[0].strip().partition(".")[0]
        assert all(problem.startswith(("--set ", section)) for problem in error.problems)
        assert str(error)
        return
    # What was accepted can be written to a run directory and read back, and holds the value as TOML or as a string.
    assert decode(encode(recipe), "recipe.json") == recipe
    key, _, value = override.partition("=")
    try:
        expected = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        expected = value.strip()
    got = value_of(recipe, key.strip())
    if not isinstance(expected, dict):
        assert got == (tuple(expected) if isinstance(got, tuple) else expected)


# ---- the resolved recipe


def test_a_resolved_recipe_has_every_key_and_reads_back() -> None:
    recipe, _ = load_recipe("digits", ("optimizer.betas=[0.8, 0.9]", "model.options.deep=true"))
    content = encode(recipe)
    table = json.loads(content)
    assert {f"{section}.{name}" for section in sections for name in table[section]} == set(keys)
    assert content.endswith(b"}\n")
    assert decode(content, "recipe.json") == recipe


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"train": {"epochs": 0}}', b'{"train": 3}', b"\xff"])
def test_what_is_no_resolved_recipe_is_named(content: bytes) -> None:
    with pytest.raises(RecipeError, match=r"run/recipe\.json cannot be used"):
        decode(content, "run/recipe.json")
