"""Verifying ledgers: a whole one, one cut short, and every way in which one can be wrong, by name and first step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worker_cases import PLAN

from ddp_bp.checkpoint import Manifest, load_checkpoint
from ddp_bp.data import ShardPlan, digest_ids
from ddp_bp.errors import InputError
from ddp_bp.recipes.load import load_recipe
from ddp_bp.worker.branch import take_over_ledger
from ddp_bp.worker.ledger import Ledger
from ddp_bp.worker.rundir import RunDirectory
from ddp_bp.worker.verify import Verification, verify_run

NUM_STEPS = 9  # two epochs of four steps, and one more
GENESIS = Ledger.genesis(PLAN.seed, PLAN.num_samples, PLAN.batch_size, PLAN.num_shards)
Lines = list[dict[str, Any]]


def history(plan: ShardPlan = PLAN, swap: tuple[int, int] | None = None) -> Lines:
    """The lines of a run. `swap`: two steps of an epoch, from 0, of which the second takes the samples of the first."""
    ledger = Ledger(GENESIS, 2)
    for step in range(NUM_STEPS):
        epoch, step_in_epoch = plan.position(step)
        source = swap[0] if swap is not None and step == swap[1] else step
        ids = [digest_ids(plan.shard_ids(source, shard)) for shard in range(4)]
        results = range(step, step + 4)
        owners = (0, 0, 1, 1) if step < 6 else (0, 0, 0, 0)
        ledger.membership = int(step >= 6)
        ledger.commit(step, epoch, plan.batch_size_at(step_in_epoch), ids, results, owners, skipped=step == 5)
    return [json.loads(line) for line in ledger.take_lines()]


def write(lines: Lines, folder: Path, tail: str = "") -> RunDirectory:
    """A run directory with these lines, as far as the verification looks at one."""
    overrides = ("train.batch_size=10", "train.shards=4", "train.seed=7")
    run = RunDirectory(folder)
    run.create(load_recipe("digits", overrides)[0], {"blas": "", "recipe_folder": "/", "training_samples": 34})
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return run


def checkpoint(run: RunDirectory, step: int, head: str) -> Path:
    manifest = Manifest(
        step=step, epoch=0, step_in_epoch=0, samples=0, seed=7, shards=4, world_size=1, ledger_sha256=head
    )
    return run.store.write(manifest, {"w": np.zeros(1, np.float32)}, {})


def problems(found: Verification) -> list[tuple[int | None, str]]:
    return [(problem.step, problem.problem) for problem in found.problems]


def test_a_whole_history_agrees_with_its_checkpoints_and_its_summary(tmp_path: Path) -> None:
    lines = history()
    run = write(lines, tmp_path)
    for step in (0, 4, 9):
        checkpoint(run, step, lines[step - 1]["chain"] if step else GENESIS)
    (tmp_path / "summary.json").write_text(json.dumps({"steps": 9, "ledger_sha256": lines[8]["chain"]}))
    found = verify_run(run)
    assert found == Verification(str(tmp_path), lines[8]["chain"], 9, 2, 2 * 34 + 10, 1, 3, True)
    assert found.valid and found.as_dict()["valid"]


@pytest.mark.parametrize("tail", ["", '{"step":4,"epo'])
def test_a_run_that_is_going_on_is_verified_up_to_its_last_whole_line(tmp_path: Path, tail: str) -> None:
    lines = history()[:4]
    found = verify_run(write(lines, tmp_path, tail))
    assert (found.steps, found.whole_epochs, found.problems) == (4, 1, [])
    assert verify_run(write([], tmp_path)).ledger_sha256 == GENESIS


def changed(**fields: Any) -> Callable[[], Lines]:
    """The history with other fields in step 6, and hashes that fit the lines."""

    def make() -> Lines:
        lines = history()
        lines[6] |= {name: value(lines[6][name]) if callable(value) else value for name, value in fields.items()}
        return lines

    return make


def without(step: int) -> Callable[[], Lines]:
    return lambda: history()[:step] + history()[step + 1 :]


def other(digests: list[str]) -> list[str]:
    return [digests[0], "0" * 16, *digests[2:]]


WRONG: dict[str, tuple[Callable[[], Lines], int, str]] = {
    "a missing line": (without(3), 3, "expected the line of step 3, got 4"),
    "a line twice": (lambda: history()[:3] + history()[2:], 3, "expected the line of step 3, got 2"),
    "another epoch": (changed(epoch=3), 6, "expected epoch 1, got 3"),
    "another number of samples": (changed(samples=9), 6, "expected a number of samples of 10, got 9"),
    "a shard missing": (changed(shards=lambda d: d[:3]), 6, "expected a number of shards of 4, got 3"),
    "a result missing": (changed(results=lambda d: d[:3]), 6, "expected a number of results of 4, got 3"),
    "other samples": (changed(shards=other), 6, "shard 1: expected the digest "),
    "a batch twice, with hashes that fit": (lambda: history(swap=(4, 6)), 6, "it was fed other samples"),
    "another result": (changed(results=other), 6, "expected the hash "),
    "skipped or not": (changed(skipped=True), 6, "expected the hash "),
    "another hash": (changed(chain="ab" * 32), 6, "expected the hash "),
    "a shard of nobody": (changed(owners=[[0, 0, 3]]), 6, "owners [(0, 0, 3)]: expected 4 shards, got 3"),
    "a shard of two": (changed(owners=[[0, 0, 3], [1, 2, 4]]), 6, "expected runs of shards in order"),
    "a rank too many": (changed(owners=[[2, 0, 4]]), 6, "of ranks below 2"),
    "no line of a ledger": (changed(chain=None), 6, "line 7, is no line of a ledger of this version"),
    "a line of an earlier version": (changed(results=None), 6, "is no line of a ledger of this version"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_first_wrong_step_is_named_and_why(tmp_path: Path, name: str) -> None:
    make, step, part = WRONG[name]
    run = write(make(), tmp_path)
    # Of a checkpoint before the wrong step something can be said, of one after it nothing.
    checkpoint(run, 2, history()[1]["chain"])
    checkpoint(run, 8, history()[7]["chain"])
    found = verify_run(run)
    [(first, problem)] = problems(found)
    assert first == found.steps == step
    assert part in problem
    assert (found.valid, found.checkpoints) == (False, 1)
    assert found.ledger_sha256 == history()[step - 1]["chain"]


def test_who_computed_what_is_no_part_of_the_chain(tmp_path: Path) -> None:
    assert verify_run(write(changed(owners=[[1, 0, 4]], membership=3)(), tmp_path)).valid


def test_checkpoints_and_summary_that_do_not_fit_are_named(tmp_path: Path) -> None:
    lines = history()
    run = write(lines, tmp_path)
    wrong, ahead = checkpoint(run, 3, lines[3]["chain"]), checkpoint(run, 12, lines[8]["chain"])
    damaged = checkpoint(run, 5, lines[4]["chain"])
    (damaged / "manifest.json").write_text("{")
    (tmp_path / "summary.json").write_text(json.dumps({"steps": 9, "ledger_sha256": lines[7]["chain"]}))
    found = verify_run(run)
    texts = [problem for _, problem in problems(found)]
    assert (found.steps, found.checkpoints, found.has_summary) == (9, 0, False)
    assert any(text.startswith(f"{tmp_path / 'summary.json'}: expected {lines[8]['chain']}") for text in texts)
    assert any(f"{wrong}: expected {lines[2]['chain']}" in text for text in texts)
    assert f"{ahead}: is of step 12, but the ledger ends after 9 steps" in texts
    assert any(text.startswith(f"{damaged}: ") and "manifest" in text for text in texts)
    assert len(texts) == 4


def test_another_plan_than_that_of_the_run_shows_at_its_first_step(tmp_path: Path) -> None:
    run = write(history(), tmp_path)
    environment = tmp_path / "environment.json"
    environment.write_text(environment.read_text().replace("34", "35"))
    [(step, _)] = problems(verify_run(run))
    assert step == 0


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a run directory, .*recipe.json: No such file"):
        verify_run(RunDirectory(tmp_path))
    run = write(history(), tmp_path / "run")
    (run.path / "ledger.jsonl").unlink()
    with pytest.raises(InputError, match=r"ledger.jsonl: expected the ledger of a run"):
        verify_run(run)
    (run.path / "environment.json").write_text("{}")
    with pytest.raises(InputError, match=r"expected the environment of a run of this version, got KeyError"):
        verify_run(run)


# ---- a run that begins with a checkpoint of another


def branched(first: RunDirectory, step: int, folder: Path, warn: Callable[[str], None]) -> RunDirectory:
    """A run that goes on from `step` of `first`, whose history it has; of its own are the lines from there on."""
    named = load_checkpoint(checkpoint(first, step, history()[step - 1]["chain"]))
    second = write([], folder)
    (folder / "ledger.jsonl").unlink()
    take_over_ledger(folder, named, warn)
    with (folder / "ledger.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in history()[step:])
    return second


def test_the_ledger_of_a_branch_begins_with_that_of_the_run_whose_checkpoint_it_goes_on_from(tmp_path: Path) -> None:
    first = write(history()[:7], tmp_path / "first")
    found = verify_run(branched(first, 5, tmp_path / "second", pytest.fail))
    assert (found.valid, found.steps, found.ledger_sha256) == (True, NUM_STEPS, history()[-1]["chain"])
    take_over_ledger(tmp_path / "second", load_checkpoint(first.path / "checkpoints" / "step-00000005"), pytest.fail)
    assert verify_run(RunDirectory(tmp_path / "second")).steps == NUM_STEPS, "it has a ledger of its own"


@pytest.mark.parametrize("other", [[], history()[:4], history(swap=(0, 1))[:7]], ids=["none", "short", "another"])
def test_a_ledger_that_does_not_lead_to_the_checkpoint_is_not_taken_over(tmp_path: Path, other: Lines) -> None:
    warnings: list[str] = []
    second = branched(write(other, tmp_path / "first"), 5, tmp_path / "second", warnings.append)
    [warning] = warnings
    assert "begins with step 5" in warning and "could not be taken over from" in warning
    assert problems(verify_run(second))[0][1].startswith("the ledger begins with step 5: expected the steps before it")
    assert not list((tmp_path / "second").glob(".tmp*"))
