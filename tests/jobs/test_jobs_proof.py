"""Wrong numbers and proof of right ones, with real processes: skipped steps, machines that err, ledgers and replays."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support import ddp_bp, processes_of, run_to_end, summary_of, wait_for_step, wait_until

from ddp_bp.checkpoint import CheckpointStore
from ddp_bp.worker.ledger import read_record

pytestmark = pytest.mark.mpi

SAME = ("weights_sha256", "ledger_sha256", "train_loss", "skipped_steps", "steps", "samples")


def ledger_lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]


def verified(run_ddp_bp, run_dir: Path) -> dict:
    result = run_ddp_bp("ledger", "verify", run_dir, "--json")
    found = json.loads(result.stdout)
    assert result.returncode == (0 if found["valid"] else 1)
    return found


# ---- steps that are not finite


@pytest.fixture
def marked_recipe(slow_recipe: Path) -> Path:
    """Four epochs of 60 samples, of which one makes the outputs of its shard no numbers."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((60, 5)).astype(np.float32)
    inputs[17, 0] = 999
    np.savez(slow_recipe.parent / "marked.npz", x=inputs, y=rng.integers(0, 3, 60))
    path = slow_recipe.parent / "marked.toml"
    path.write_text(
        '[model]\nfactory = "job_models:marked"\n[data]\npath = "marked.npz"\ntarget = "y"\neval_fraction = 0\n'
        "[train]\nepochs = 4\nbatch_size = 20\nshards = 4\nema_decay = 0.9\n[optimizer]\nname = 'adam'\nlr = 0.01\n"
    )
    return path


def test_a_step_that_is_not_finite_is_skipped_alike_on_any_number_of_workers_and_after_a_resume(
    run_ddp_bp, marked_recipe: Path, tmp_path: Path
) -> None:
    alone = run_ddp_bp("train", marked_recipe, "--run-dir", tmp_path / "alone", "--json")
    assert alone.returncode == 0, alone.stderr
    options = ("train", marked_recipe, "--run-dir", tmp_path / "two", "--json")
    for size, max_steps in ((2, 7), (3, 100)):
        result = run_ddp_bp(*options, "-n", size, "--set", f"train.max_steps={max_steps}")
        assert result.returncode == 0, result.stderr
    expected, summary = json.loads(alone.stdout), json.loads(result.stdout)
    assert {key: summary[key] for key in SAME} == {key: expected[key] for key in SAME}
    assert (summary["skipped_steps"], summary["steps"], summary["samples"]) == (4, 12, 240)
    skipped = [line["step"] for line in ledger_lines(tmp_path / "two") if line.get("skipped")]
    assert [step // 3 for step in skipped] == [0, 1, 2, 3], "once an epoch, as every sample"
    warned = re.findall(r"warning: step (\d+), shard \d+ \(sample ids .*\b17\b.*\): skipped, because", alone.stderr)
    assert [int(step) for step in warned] == [step for step in skipped if step - 1 not in skipped]
    found = verified(run_ddp_bp, tmp_path / "two")
    assert (found["valid"], found["skipped_steps"], found["whole_epochs"]) == (True, 4, 4)
    replayed = run_ddp_bp("replay", tmp_path / "two", "--step", 11, "--json")
    assert (replayed.returncode, json.loads(replayed.stdout)["first_step"]) == (0, 7), replayed.stdout


def test_too_many_skips_in_a_row_end_the_job_with_a_checkpoint_and_name_the_first(run_ddp_bp, tmp_path: Path) -> None:
    options = ("train", "digits", "-n", 2, "--set", "optimizer={name='sgd', lr=1e30}", "--run-dir", tmp_path / "run")
    result = run_ddp_bp(*options, "--set", "fault.nonfinite_limit=2")
    assert result.returncode == 1
    assert result.stderr.count("warning: step 1, shard 0") == 1
    for part in ("in all 2 steps since then", "lower optimizer.lr", "fault.nonfinite_limit = 2"):
        assert result.stderr.count(part) == 1
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    assert [bool(line.get("skipped")) for line in ledger_lines(tmp_path / "run")] == [False, True, True]
    assert verified(run_ddp_bp, tmp_path / "run")["valid"]
    # A start with another limit goes on from there, and still knows where it began.
    result = run_ddp_bp(*options, "--set", "fault.nonfinite_limit=3")
    assert result.returncode == 1
    assert "step 1, shard 0" in result.stderr and "in all 3 steps since then" in result.stderr
    assert verified(run_ddp_bp, tmp_path / "run")["steps"] == 4


# ---- machines that compute wrongly


def test_a_rank_whose_parameters_change_is_named(run_ddp_bp, slow_recipe: Path, tmp_path: Path) -> None:
    options = ["--set", "model.factory=job_models:meddling", "--set", "exchange.algorithm=messages"]
    options += ["--set", "fault.compare_every_steps=5", "--set", "checkpoint.every_steps=0"]
    result = run_ddp_bp("train", slow_recipe, "-n", 3, *options, "--run-dir", tmp_path / "run")
    assert result.returncode == 1
    assert result.stderr.count("the ranks hold different parameters") == 1
    assert "before the update of step 0" in result.stderr
    assert "Most agree, but not rank 1 (node 1, " in result.stderr
    assert processes_of(tmp_path / "run") == []


@pytest.mark.parametrize("size", [2, 3])
def test_an_audit_names_the_rank_that_computes_wrongly(
    run_ddp_bp, slow_recipe: Path, tmp_path: Path, size: int
) -> None:
    options = ["--set", "model.factory=job_models:wrong", "--set", "fault.audit=0.5"]
    result = run_ddp_bp("train", slow_recipe, "-n", size, *options, "--run-dir", tmp_path / "run")
    assert result.returncode == 1
    assert result.stderr.count("audit of step") == 1
    assert ("Rank 1 computes wrongly" if size == 3 else "One of ranks ") in result.stderr
    assert processes_of(tmp_path / "run") == []


# ---- proof


RECIPE = """
[model]
factory = "job_models:everything"
[data]
name = "digits"
input_shape = [1, 8, 8]
[data.augment]
shift = 1
[train]
epochs = 6
batch_size = 359     # 1438 samples: an epoch has four steps and a fifth of 2 samples
shards = 5
ema_decay = 0.9
[optimizer]
name = "adamw"
lr = 0.01
clip_norm = 0.5
[schedule]
name = "plateau"
patience = 0
threshold = 0.5      # rates fall at evaluations, so that a replay has to evaluate
[checkpoint]
keep = 20
[fault]
audit = 0.3
"""


@pytest.fixture(scope="module")
def run_of_everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a job with all that a step can have, started on 2 ranks and ended on 3."""
    folder = tmp_path_factory.mktemp("proof")
    (folder / "job_models.py").write_text((Path(__file__).parent / "job_models.py").read_text())
    (folder / "everything.toml").write_text(RECIPE)
    for size, max_steps in ((2, 11), (3, 24)):
        options = ["--run-dir", folder / "run", "--set", f"train.max_steps={max_steps}"]
        result = run_to_end(ddp_bp("train", folder / "everything.toml", "-n", size, *options), 90)
        assert result.returncode == 0, result.stderr
    return folder / "run"


def test_a_run_over_two_starts_is_verified_and_its_steps_replayed(run_ddp_bp, run_of_everything: Path) -> None:
    run_dir = run_of_everything
    found = verified(run_ddp_bp, run_dir)
    assert (found["valid"], found["steps"], found["checkpoints"], found["has_summary"]) == (True, 24, 2, True)
    assert found["ledger_sha256"] == summary_of(run_dir)["ledger_sha256"]
    lines = ledger_lines(run_dir)
    assert lines[10]["owners"] == [[0, 0, 2], [1, 2, 5]]
    assert lines[11]["owners"] == [[0, 0, 1], [1, 1, 3], [2, 3, 5]]
    metrics = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    assert len({line["learning_rate"] for line in metrics if "learning_rate" in line}) > 1, "a plateau was reached"
    for step, first in ((7, 0), (23, 11)):
        result = run_ddp_bp("replay", run_dir, "--step", step, "--json")
        replayed = json.loads(result.stdout)
        assert (result.returncode, replayed["equal"], replayed["first_step"]) == (0, True, first), result.stdout
        assert [row["replayed"] for row in replayed["shards"]] == lines[step]["results"]
        assert replayed["chain_sha256"] == lines[step]["chain"]
    assert replayed["weights_sha256"] == summary_of(run_dir)["weights_sha256"]
    result = run_ddp_bp("replay", run_dir, "--step", 12, "--shard", 3)
    assert result.returncode == 0, result.stderr
    assert "steps 11 to 12, from checkpoint " in result.stdout and "equal" in result.stdout


def test_a_forged_result_is_found_by_checkpoints_and_by_a_replay(
    run_ddp_bp, run_of_everything: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(run_of_everything, run_dir)
    lines = ledger_lines(run_dir)
    lines[12]["results"][3] = "0" * 16
    for step in range(12, len(lines)):  # with hashes that fit
        lines[step]["chain"] = read_record(json.dumps(lines[step]), "a line").follows(lines[step - 1]["chain"])
    (run_dir / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = verified(run_ddp_bp, run_dir)
    assert {Path(problem["problem"].split(": ")[0]).name for problem in found["problems"]} == {
        "summary.json",
        "step-00000024",
    }
    result = run_ddp_bp("replay", run_dir, "--step", 13, "--json")
    replayed = json.loads(result.stdout)
    assert (result.returncode, replayed["equal"]) == (1, False)
    assert [(found["step"], found["shards"]) for found in replayed["differences"]] == [(12, [3])]
    shown = run_ddp_bp("replay", run_dir, "--step", 12, "--shard", 3)
    assert shown.returncode == 1
    assert "DIFFERS" in shown.stdout and "first difference at step 12: the results of shards 3 differ" in shown.stdout


def test_weights_that_do_not_follow_from_the_last_step_are_found_by_a_replay(
    run_ddp_bp, run_of_everything: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(run_of_everything, run_dir)
    store = CheckpointStore(run_dir / "checkpoints")
    last = store.load(store.entries()[0].path)
    model = {**last.model, "head.weight": last.model["head.weight"] + np.float32(1)}
    store.write(msgspec.structs.replace(last.manifest, weights_sha256=""), model, last.optimizer)
    assert store.verify(last.path) == []
    result = run_ddp_bp("replay", run_dir, "--step", 23)
    assert result.returncode == 1 and "steps 11 to 23" in result.stdout
    assert "first difference at step 23: all results are as recorded, but the weights' hash is" in result.stdout


def test_what_cannot_be_replayed_or_shown_is_exit_code_2(run_ddp_bp, run_of_everything: Path, tmp_path: Path) -> None:
    for arguments, part in (
        (("replay", run_of_everything, "--step", 24), "the ledger does not have step 24;"),
        (("replay", run_of_everything, "--step", 3, "--shard", 5), "expected a shard below 5"),
        (("replay", tmp_path, "--step", 3), "expected a run directory"),
        (("ledger", "show", run_of_everything, "--step", 24), "has no step 24; its last one is 23"),
        (("ledger", "verify", tmp_path / "nowhere"), "expected a run directory"),
    ):
        result = run_ddp_bp(*arguments)
        assert (result.returncode, result.stdout) == (2, ""), result.stderr
        assert part in result.stderr and "Traceback" not in result.stderr
    shown = run_ddp_bp("ledger", "show", run_of_everything, "--step", 3, "--json")
    ids = [i for row in json.loads(shown.stdout)["shards"] for i in row["sample_ids"]]
    assert len(set(ids)) == 359


def test_a_run_is_verified_while_it_goes_on_and_after_everything_was_killed(
    start_command, run_ddp_bp, slow_recipe: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, "--set", "train.epochs=500"))
    wait_for_step(run_dir, 9)
    found = verified(run_ddp_bp, run_dir)
    assert found["valid"] and found["steps"] >= 7 and not found["has_summary"]
    victims = processes_of(run_dir)
    for victim in victims:
        victim.send_signal(signal.SIGKILL)
    wait_until(lambda: not processes_of(run_dir), "the killed processes to be gone")
    after = verified(run_ddp_bp, run_dir)
    assert after["valid"] and after["steps"] >= found["steps"]
    replayed = run_ddp_bp("replay", run_dir, "--step", after["steps"] - 1)
    assert replayed.returncode == 0, replayed.stdout


def test_a_replay_takes_the_kernels_of_the_run(run_ddp_bp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    run_dir = tmp_path / "run"
    options = ("--set", "train.epochs=1", "--set", "train.shards=2", "--set", "blas.kernels=Nehalem")
    trained = run_ddp_bp("train", "digits", *options, "--run-dir", run_dir)
    assert trained.returncode == 0, trained.stderr
    replayed = run_ddp_bp("replay", run_dir, "--step", 20)
    assert (replayed.returncode, replayed.stderr) == (0, "")
    with_others = run_ddp_bp("replay", run_dir, "--step", 20, OPENBLAS_CORETYPE="Sandybridge")
    assert with_others.returncode == 1
    assert "the run was last started with OpenBLAS" in with_others.stderr
    assert "first difference at step 0" in with_others.stdout


# ---- beginning with an older checkpoint


def test_a_run_from_an_older_checkpoint_has_the_whole_ledger_and_is_not_begun_where_there_are_newer_ones(
    run_ddp_bp, marked_recipe: Path, tmp_path: Path
) -> None:
    first, options = tmp_path / "first", ("train", marked_recipe, "--json", "--run-dir")
    for max_steps in (5, 12):
        ended = run_ddp_bp(*options, first, "--set", f"train.max_steps={max_steps}")
        assert ended.returncode == 0, ended.stderr
    older = first / "checkpoints" / "step-00000005"
    back = run_ddp_bp(*options, first, "--resume", older, "--set", "train.max_steps=7")
    assert back.returncode == 2 and "has newer checkpoints (step-00000012), from which" in back.stderr
    assert len(ledger_lines(first)) == 12
    branch = run_ddp_bp(*options, tmp_path / "branch", "--resume", older, "-n", "2", "--set", "train.max_steps=12")
    assert branch.returncode == 0, branch.stderr
    assert {key: json.loads(branch.stdout)[key] for key in SAME} == {key: json.loads(ended.stdout)[key] for key in SAME}
    assert verified(run_ddp_bp, tmp_path / "branch")["steps"] == 12
