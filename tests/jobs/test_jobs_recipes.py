"""What a recipe says about rates and text, with real processes: the same bits for any number of workers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import ddp_bp, run_to_end

from ddp_bp.engine import no_grad, tensor
from ddp_bp.nn.models import mlp

pytestmark = pytest.mark.mpi

# 3,200 characters make 360 windows to train on: 36 steps an epoch, the last of 10 samples.
RECIPE = """
[model]
factory = "job_models:text"
[data]
path = "own.txt"
context = 8
[train]
epochs = 4
batch_size = 10
shards = 3
[optimizer]
name = "adamw"
lr = 0.05
weight_decay = 0.1
decay = "matrices"
[loss]
label_smoothing = 0.1
[sample]
characters = 40
prompt = "the"
"""
# With the rates that they end with: the last of the cycle, and half of a half of a half.
SCHEDULES = [
    ('schedule={name = "one_cycle", epochs = 4}', 0.05 / 25 / 1e4),
    ('schedule={name = "plateau", factor = 0.5, patience = 0, threshold = 0.9}', 0.05 / 8),
]
SAME = ("weights_sha256", "ledger_sha256", "train_loss", "eval_loss", "eval_accuracy", "steps", "samples", "sample")
WORDS = ("the", "whale", "of", "a", "sea", "\n", "ship", "and")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "job_models.py").write_text((Path(__file__).parent / "job_models.py").read_text())
    words = (WORDS[(7 * i + i // 8) % 8] for i in range(2000))
    (folder / "own.txt").write_text(" ".join(words)[:3200])
    (folder / "own.toml").write_text(RECIPE)
    return folder / "own.toml"


def train(recipe: Path, run_dir: Path, size: int, *settings: str) -> dict:
    arguments = [part for setting in settings for part in ("--set", setting)]
    result = run_to_end(ddp_bp("train", recipe, "-n", size, "--run-dir", run_dir, "--json", *arguments), 90)
    assert result.returncode == 0, result.stderr
    summary: dict = json.loads(result.stdout)
    return summary


def last_rate(run_dir: Path) -> float:
    manifest = json.loads(max((run_dir / "checkpoints").iterdir()).joinpath("manifest.json").read_bytes())
    schedule = manifest["extra"]["schedule"]
    if schedule and "best" in schedule:
        # What a plateau does after the last evaluation comes too late for the metrics, if a report was due before it.
        return float(schedule["lrs"][0])
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    shown: list[float] = [line["learning_rate"] for line in lines if "learning_rate" in line]
    return shown[-1]


@pytest.mark.parametrize(("schedule", "rate"), SCHEDULES)
def test_rates_and_the_written_text_are_the_same_on_any_number_of_workers_and_after_a_resume(
    recipe: Path, tmp_path: Path, schedule: str, rate: float
) -> None:
    alone = train(recipe, tmp_path / "alone", 1, schedule)
    assert alone["sample"].startswith("the")
    assert len(alone["sample"]) == 43
    assert 0 < alone["eval_accuracy"] <= 1
    assert last_rate(tmp_path / "alone") == pytest.approx(rate, rel=1e-9)
    # Stopped within an epoch, where an evaluation follows that the undisturbed run does not have.
    broken = tmp_path / "broken"
    stopped = train(recipe, broken, 2, schedule, "train.max_steps=93")
    assert (stopped["steps"], stopped["eval_loss"] is not None) == (93, True)
    resumed = train(recipe, broken, 3, schedule)
    assert resumed["resumed_from_step"] == 93
    assert last_rate(broken) == last_rate(tmp_path / "alone")
    assert {key: resumed[key] for key in SAME} == {key: alone[key] for key in SAME}


def test_a_prolonged_run_keeps_its_curve_and_other_recipes_are_refused(recipe: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert train(recipe, run_dir, 2, "schedule.name=cosine", "train.epochs=2")["steps"] == 72
    stored = json.loads((run_dir / "recipe.json").read_bytes())
    assert (stored["schedule"]["epochs"], stored["schedule"]["max_steps"]) == (2.0, None)
    longer = train(recipe, run_dir, 1, "schedule.name=cosine", "train.epochs=3")
    assert longer["steps"] == 108
    # Beyond its end a cosine is 0, and so the weights stay.
    before = json.loads((run_dir / "checkpoints" / "step-00000072" / "manifest.json").read_bytes())
    assert longer["weights_sha256"] == before["weights_sha256"]
    refused = run_to_end(ddp_bp("train", recipe, "--run-dir", run_dir, "--set", "schedule.name=linear"), 90)
    assert refused.returncode == 2
    assert "schedule.name: 'cosine' -> 'linear'" in refused.stderr


def test_train_ends_with_the_text_that_the_model_has_written(run_ddp_bp, recipe: Path, tmp_path: Path) -> None:
    result = run_ddp_bp("train", recipe, "--run-dir", tmp_path / "run", "--set", "train.epochs=1")
    assert result.returncode == 0, result.stderr
    sample = json.loads((tmp_path / "run" / "summary.json").read_bytes())["sample"]
    assert result.stdout.endswith(f"written by the trained model:\n\n{sample}\n")


def test_a_finished_run_writes_another_sample_if_it_is_asked_to(recipe: Path, tmp_path: Path) -> None:
    first = train(recipe, tmp_path / "run", 1, "train.epochs=1")
    again = train(recipe, tmp_path / "run", 2, "train.epochs=1", "sample.characters=7")
    assert len(again["sample"]) == len("the") + 7
    assert {key: again[key] for key in SAME if key != "sample"} == {key: first[key] for key in SAME if key != "sample"}
    unchanged = train(recipe, tmp_path / "run", 1, "train.epochs=1", "sample.characters=7")
    assert unchanged == again


def test_more_epochs_than_the_schedule_has_are_warned_of(run_ddp_bp, tmp_path: Path) -> None:
    options = ("train", "digits", "--run-dir", tmp_path / "run", "--set", "schedule.name=cosine")
    first = run_ddp_bp(*options, "--set", "train.epochs=1")
    assert first.returncode == 0 and "warning" not in first.stderr, first.stderr
    second = run_ddp_bp(*options, "--set", "train.epochs=2")
    assert second.returncode == 0
    assert second.stderr.count("warning") == 1
    assert "schedule 'cosine' ends at step 23, as it did at the first start, and training at step 46" in second.stderr
    assert "the learning rate stays 0 in between, at which next to nothing is learned" in second.stderr


def test_a_checkpoint_says_all_that_it_takes_to_predict_on_other_samples(tmp_path: Path) -> None:
    """By the README's lines, with nothing of the recipe or its data: the loss is that of the run's evaluation."""
    rng = np.random.default_rng(3)
    values = rng.normal(40, 7, (90, 4)) * [1, 10, 0.1, 1]
    values[:, 3] = values[:, 0] - values[:, 1] / 5 + rng.normal(size=90)
    for name, rows in (("train.csv", values[:60]), ("later.csv", values[60:])):
        np.savetxt(tmp_path / name, rows, delimiter=",")
    (tmp_path / "own.toml").write_text(
        """
        model = { name = "mlp", options = { hidden = [8] } }
        optimizer = { name = "adam" }
        train = { batch_size = 10, epochs = 3 }
        [data]
        path = "train.csv"
        eval_path = "later.csv"
        task = "regression"
        standardize = true
        standardize_targets = true
        """
    )
    summary = train(tmp_path / "own.toml", tmp_path / "run", 2)
    checkpoint = max((tmp_path / "run" / "checkpoints").iterdir())
    samples = json.loads((checkpoint / "manifest.json").read_bytes())["extra"]["samples"]
    model = mlp(samples["input_shape"], 1, hidden=[8])
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    inputs = (values[60:, :3] - samples["inputs"]["mean"]) / samples["inputs"]["deviation"]
    with no_grad():
        outputs = model.eval()(tensor(inputs.astype(np.float32))).numpy()
    predicted = outputs * samples["targets"]["deviation"] + samples["targets"]["mean"]
    errors = (predicted[:, 0] - values[60:, 3]) / np.squeeze(samples["targets"]["deviation"])
    np.testing.assert_allclose(np.mean(errors**2), summary["eval_loss"], rtol=1e-5)


def test_the_checkpoint_of_a_text_has_its_characters(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run", 1, "train.epochs=1")
    manifest = json.loads(max((tmp_path / "run" / "checkpoints").iterdir()).joinpath("manifest.json").read_bytes())
    assert manifest["extra"]["samples"]["vocabulary"] == "".join(sorted(set("".join(WORDS) + " ")))
