"""The run directory: what may be started in it, and from which checkpoint."""

from __future__ import annotations

import contextlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddp_bp.checkpoint import CheckpointStore, Manifest, load_checkpoint
from ddp_bp.errors import CheckpointError, InputError, RecipeError
from ddp_bp.recipes import Recipe, load_recipe
from ddp_bp.recipes.load import decode
from ddp_bp.recipes.schema import identity
from ddp_bp.worker.assemble import Job, assemble
from ddp_bp.worker.rundir import RunDirectory, check_checkpoint, describe_environment, recipe_sha256

BASE = ("train={epochs = 2, batch_size = 64, shards = 4, seed = 1}", "optimizer={lr = 0.25}")


def recipe(*overrides: str) -> Recipe:
    return load_recipe("digits", (*BASE, *overrides))[0]


def without_shards(*overrides: str) -> Recipe:
    return recipe("train={epochs = 2, batch_size = 64}", *overrides)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "runs" / "one")


def write(run: RunDirectory, step: int, seed: int = 1, shards: int = 4, **fields: Any) -> Path:
    manifest = Manifest(
        step=step, epoch=0, step_in_epoch=step, samples=0, seed=seed, shards=shards, world_size=1, **fields
    )
    return CheckpointStore(run.path / "checkpoints").write(manifest, {"w": np.full(3, step, np.float32)}, {})


def of_this_run(job: Job) -> dict[str, Any]:
    return {"recipe": identity(job.recipe), "data": job.data_digests}


def damage(checkpoint: Path) -> None:
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (checkpoint / "model.safetensors").write_bytes(content)


def listing(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


# ---- resolve


def test_the_number_of_shards_is_the_recipes_else_that_of_the_first_start_else_the_world_size(
    run: RunDirectory, tmp_path: Path
) -> None:
    assert run.resolve(recipe("train.shards=6"), 3).train.shards == 6
    first = run.resolve(without_shards(), 3)
    assert first.train.shards == 3
    assert listing(tmp_path) == [], "resolving only looks"
    run.create(first, {})
    assert run.is_started
    assert run.resolve(without_shards(), 5).train.shards == 3
    with pytest.raises(RecipeError, match=r"train\.shards: 3 -> 5"):
        run.resolve(without_shards("train.shards=5"), 5)


def test_another_recipe_is_refused_with_every_key_that_differs(run: RunDirectory) -> None:
    run.create(run.resolve(recipe(), 1), {})
    same = ("train.epochs=3", "train.max_steps=9", "checkpoint.keep=1", "coordinator.http_port=9464", "title=x")
    assert run.resolve(recipe(*same), 2).train.epochs == 3
    with pytest.raises(RecipeError) as raised:
        run.resolve(recipe("optimizer.lr=0.5", "train.seed=9", "model.options.extra=1", *same), 2)
    assert raised.value.problems[:-1] == (
        "model.options.extra: None -> 1",
        "optimizer.lr: 0.25 -> 0.5",
        "train.seed: 1 -> 9",
    )
    assert "another --run-dir" in raised.value.problems[-1]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(InputError, match=r"expected an empty folder, .* no recipe\.json"):
            RunDirectory(path).resolve(recipe(), 1)
    (tmp_path / "empty").mkdir()
    assert RunDirectory(tmp_path / "empty").resolve(recipe(), 1) == recipe()


def test_a_recipe_file_that_cannot_be_read_back_is_named(run: RunDirectory) -> None:
    run.create(recipe(), {})
    (run.path / "recipe.json").write_text("{")
    with pytest.raises(RecipeError, match=r"recipe\.json cannot be used"):
        run.resolve(recipe(), 1)


def test_a_path_that_the_disk_refuses_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = RunDirectory(tmp_path / "file" / "run")
    assert run.finished_summary(recipe(), 3) is None
    with pytest.raises(InputError, match=r"file/run cannot be used: .*Not a directory; give another --run-dir"):
        run.create(recipe(), {})
    other = RunDirectory(tmp_path / "other")
    (other.path / "recipe.json").mkdir(parents=True)
    with pytest.raises(InputError, match=r"recipe\.json: Is a directory"):
        other.resolve(recipe(), 1)


def test_what_create_writes_reads_back(run: RunDirectory) -> None:
    environment = describe_environment(mpirun=["mpirun", "-n", "2"])
    run.create(recipe(), environment)
    stored = decode((run.path / "recipe.json").read_bytes(), "recipe.json")
    assert stored == recipe()
    assert recipe_sha256(stored) == recipe_sha256(recipe())
    assert recipe_sha256(stored) != recipe_sha256(recipe("train.seed=3"))
    assert json.loads((run.path / "environment.json").read_bytes()) == environment
    assert environment["numpy"] == np.__version__
    assert environment["mpirun"] == ["mpirun", "-n", "2"]
    run.create(recipe(), environment)  # a second start


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """Writing more than 1,000 bytes to a file is refused, as by a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InputError, match=r"recipe\.json: File too large; give another --run-dir"):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_first_start_without_room_or_killed_in_its_first_moment_leaves_a_folder_for_the_next(
    run: RunDirectory,
) -> None:
    with no_room():
        run.create(recipe(), {})
    (run.path / "launcher.lock").touch()
    (run.path / ".tmp-recipe.json").touch()
    run.create(run.resolve(recipe(), 1), {})
    assert run.is_started


def test_a_start_that_the_disk_has_no_room_for_leaves_recipe_and_environment_of_the_one_before(
    run: RunDirectory,
) -> None:
    run.create(recipe(), {"start": 1})
    before = {path.name: path.read_bytes() for path in run.path.glob("*.json")}
    with no_room():
        run.create(recipe("title=longer"), {"start": 2})
    assert {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()} == before
    assert run.resolve(recipe(), 1) == recipe()


# ---- select


def test_auto_takes_the_newest_whole_checkpoint_and_warns_of_each_damaged_one(run: RunDirectory) -> None:
    warnings: list[str] = []
    assert run.select_checkpoint("auto", warnings.append) is None
    run.create(recipe(), {})
    paths = [write(run, step) for step in (10, 20, 30, 40)]
    damage(paths[3])
    (paths[2] / "manifest.json").unlink()
    chosen = run.select_checkpoint("auto", warnings.append)
    assert chosen is not None
    assert (chosen.path, chosen.manifest.step) == (paths[1], 20)
    assert [("step 40" in warning, "step 30" in warning) for warning in warnings] == [(True, False), (False, True)]


def test_an_older_checkpoint_than_the_newest_whole_one_is_refused_and_they_are_named(run: RunDirectory) -> None:
    run.create(recipe(), {})
    paths = [write(run, step) for step in (10, 20, 30, 40)]
    damage(paths[3])
    with pytest.raises(CheckpointError, match=r"has newer checkpoints \(step-00000030, step-00000020\), from which"):
        run.check_newest(load_checkpoint(paths[0]))
    run.check_newest(load_checkpoint(paths[2]))


def test_never_starts_anew_but_overwrites_no_run(run: RunDirectory) -> None:
    assert run.select_checkpoint("never", pytest.fail) is None
    run.create(recipe(), {})
    assert run.select_checkpoint("never", pytest.fail) is None
    write(run, 10)
    with pytest.raises(CheckpointError, match=r"--resume never: .* holds checkpoints of an earlier start"):
        run.select_checkpoint("never", pytest.fail)


def test_a_named_checkpoint_is_taken_or_refused_by_name(run: RunDirectory, tmp_path: Path) -> None:
    other = RunDirectory(tmp_path / "other")
    path = write(other, 10)
    chosen = run.select_checkpoint(str(path), pytest.fail)
    assert chosen is not None and chosen.path == path
    damage(path)
    with pytest.raises(CheckpointError, match=r"step-00000010/model\.safetensors"):
        run.select_checkpoint(str(path), pytest.fail)
    with pytest.raises(CheckpointError, match="nowhere"):
        run.select_checkpoint(str(tmp_path / "nowhere"), pytest.fail)


def test_a_checkpoint_of_another_plan_cannot_give_the_bits_of_this_run(run: RunDirectory) -> None:
    job = assemble(recipe(), Path(), check_data=False)
    told: list[str] = []
    check_checkpoint(load_checkpoint(write(run, 10, extra=of_this_run(job))), job, told.append)
    assert told == []
    with pytest.raises(CheckpointError, match=r"expected the seed 1, got 2; set train\.seed to that"):
        check_checkpoint(load_checkpoint(write(run, 20, seed=2)), job, told.append)
    with pytest.raises(CheckpointError, match="expected a number of shards of 4, got 3"):
        check_checkpoint(load_checkpoint(write(run, 30, shards=3)), job, told.append)
    with pytest.raises(CheckpointError, match=r"expected the recipe \w+, got other; use the recipe of its run"):
        check_checkpoint(
            load_checkpoint(write(run, 31, extra={**of_this_run(job), "recipe": "other"})), job, told.append
        )
    with pytest.raises(CheckpointError, match="the data files have changed"):
        check_checkpoint(load_checkpoint(write(run, 32, extra={**of_this_run(job), "data": []})), job, told.append)
    with pytest.raises(CheckpointError, match="it is at step 100, but the recipe ends at step 46"):
        check_checkpoint(load_checkpoint(write(run, 100, extra=of_this_run(job))), job, told.append)
    older = {"numpy": "1.0", "python": "3.0", "ddp_bp": "0.0"}
    check_checkpoint(load_checkpoint(write(run, 40, extra=of_this_run(job), versions=older)), job, told.append)
    assert len(told) == 3
    assert "was written with numpy 1.0" in "".join(told)


# ---- finished


@pytest.mark.parametrize(
    ("content", "is_finished"),
    [
        ('{"steps": 40}', True),
        ('{"steps": 39}', False),
        ("{}", False),
        ("[40]", False),
        ('{"ste', False),
        (None, False),
    ],
)
def test_a_run_is_finished_only_by_a_summary_of_all_its_steps(
    run: RunDirectory, content: str | None, is_finished: bool
) -> None:
    run.create(recipe(), {})
    if content is not None:
        (run.path / "summary.json").write_text(content)
    assert (run.finished_summary(recipe(), 40) == {"steps": 40}) is is_finished
    assert (run.finished_summary(recipe(), 40) is None) is not is_finished
