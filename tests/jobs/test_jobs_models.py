"""A model with all that is hard to keep in step (buffers, shared statistics, tied weights), with real processes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import ddp_bp, run_to_end, summary_of, wait_for_step

pytestmark = pytest.mark.mpi

RECIPE = """
[model]
factory = "job_models:everything"
[data]
name = "digits"
input_shape = [1, 8, 8]
[data.augment]
shift = 1
flip = true
normalize = { mean = [0.3], std = [0.4] }
[train]
epochs = 5           # long enough to be stopped
batch_size = 71      # 1438 samples: the last batch has 18, in 5 shards of 3 and 4
shards = 5
ema_decay = 0.9
[optimizer]
name = "adamw"
lr = 0.01
clip_norm = 0.5
"""
SAME = ("weights_sha256", "ledger_sha256", "train_loss", "eval_loss", "eval_accuracy", "steps")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("everything")
    (folder / "job_models.py").write_text((Path(__file__).parent / "job_models.py").read_text())
    (folder / "everything.toml").write_text(RECIPE)
    return folder / "everything.toml"


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Path:
    """The run directory of the recipe on one rank."""
    run_dir = recipe.parent / "alone"
    result = run_to_end(ddp_bp("train", recipe, "--run-dir", run_dir, "--json"), 90)
    assert result.returncode == 0, result.stderr
    return run_dir


def last_checkpoint(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").glob("step-*"))


def assert_same_run(run_dir: Path, other: Path) -> None:
    """The same summary, and the same bits in every tensor of the last checkpoint."""
    first, second = summary_of(run_dir), summary_of(other)
    assert {key: first[key] for key in SAME} == {key: second[key] for key in SAME}
    for name in ("model", "optimizer"):
        tensors, others = (load_file(last_checkpoint(path) / f"{name}.safetensors") for path in (run_dir, other))
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            assert tensor.tobytes() == others[key].tobytes(), key


@pytest.mark.parametrize("size", [2, 3])
def test_it_has_the_same_bits_on_any_number_of_ranks(
    run_ddp_bp, recipe: Path, alone: Path, tmp_path: Path, size: int
) -> None:
    result = run_ddp_bp("train", recipe, "-n", size, "--run-dir", tmp_path / "run", "--json")
    assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path / "run", alone)
    assert json.loads(result.stdout)["eval_accuracy"] > 0.7


def test_it_has_the_same_bits_where_ranks_share_no_memory(
    run_ddp_bp, recipe: Path, alone: Path, tmp_path: Path
) -> None:
    options = ("--set", "exchange.algorithm=messages", "--run-dir", tmp_path / "run", "--json")
    result = run_ddp_bp("train", recipe, "-n", 3, *options)
    assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path / "run", alone)


def test_it_goes_on_after_a_stop_with_the_same_bits(
    start_command, run_ddp_bp, recipe: Path, alone: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = start_command(ddp_bp("train", recipe, "-n", 3, "--run-dir", run_dir))
    wait_for_step(run_dir, 3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert summary_of(run_dir)["steps"] < summary_of(alone)["steps"]
    result = run_ddp_bp("train", recipe, "-n", 2, "--run-dir", run_dir, "--resume", "auto", "--json")
    assert result.returncode == 0, result.stderr
    assert_same_run(run_dir, alone)


@pytest.mark.parity
def test_its_checkpoint_loads_into_the_same_model_of_pytorch(alone: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch

    class Everything(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(1, 8, 3, padding=1)
            self.norm = torch.nn.BatchNorm2d(8)
            self.second = torch.nn.Conv2d(8, 8, 3, padding=1)
            self.third = torch.nn.Conv2d(8, 8, 3, padding=1)
            self.third.weight = self.second.weight
            self.synced = torch.nn.BatchNorm2d(8)
            self.head = torch.nn.Linear(128, 10)

        def forward(self, x):
            x = self.norm(self.first(x)).relu()
            x = self.synced(self.third(self.second(x).relu()) + x).relu()
            return self.head(torch.nn.functional.max_pool2d(x, 2).flatten(1))

    model = Everything()
    model.load_state_dict(load_torch(last_checkpoint(alone) / "model.safetensors"), strict=True)
    model.eval()
    averages = {
        name.removesuffix(".ema"): value
        for name, value in load_torch(last_checkpoint(alone) / "optimizer.safetensors").items()
        if name.endswith(".ema")
    }
    missing = model.load_state_dict(averages, strict=False)
    assert missing.unexpected_keys == []
    from ddp_bp.data import DataSpec, load

    data = load(DataSpec(name="digits", input_shape=(1, 8, 8)), alone)
    inputs, targets = data.evaluation.batch(np.arange(data.evaluation.num_samples))
    with torch.no_grad():
        output = model(torch.from_numpy((inputs - np.float32(0.3)) / np.float32(0.4))).numpy()
    accuracy = float((output.argmax(1) == targets).mean())
    assert accuracy == pytest.approx(summary_of(alone)["eval_accuracy"], abs=1e-6)
