"""Runs that releases have left, one for each checkpoint format: this version reads them, and goes on from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.numpy

from ddp_bp.checkpoint import CheckpointStore, load_checkpoint, weights_sha256
from ddp_bp.checkpoint.format import FORMAT_VERSION

STORED = Path(__file__).parent / "stored"
STEP, LAST_STEP = 5, 11


@pytest.fixture(params=range(1, FORMAT_VERSION + 1), ids=lambda number: f"format {number}")
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what is stored of a format."""
    folder = STORED / f"format-{request.param}"
    assert folder.is_dir(), f"no run of checkpoint format {request.param} is stored: see {STORED / 'README.md'}"
    return shutil.copytree(folder, tmp_path / folder.name)


def checkpoint_of(run: Path, step: int) -> Path:
    return run / f"checkpoints/step-{step:08d}"


def test_nothing_is_stored_of_a_format_that_nobody_writes() -> None:
    assert len(list(STORED.glob("format-*"))) == FORMAT_VERSION


def test_a_stored_checkpoint_is_read_to_the_bit(stored: Path) -> None:
    checkpoint = load_checkpoint(checkpoint_of(stored / "run", STEP))
    assert f"format-{checkpoint.manifest.format_version}" == stored.name, "a manifest says how it was written"
    assert weights_sha256(checkpoint.model) == (stored / "weights_sha256.txt").read_text().strip()
    assert {name.rpartition(".")[2] for name in checkpoint.optimizer} == {"exp_avg", "exp_avg_sq", "ema"}


@pytest.mark.mpi
def test_training_goes_on_from_a_stored_run(stored: Path, run_ddp_bp) -> None:
    def train(run: Path, num_ranks: int, max_steps: int) -> dict:
        done = run_ddp_bp(
            *("train", stored / "recipe.toml", "-n", num_ranks, "--run-dir", run, "--json"),
            *("--set", f"train.max_steps={max_steps}"),
        )
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert (summary["resumed_from_step"], summary["steps"]) == (STEP, max_steps)
        return summary

    run, untrained = stored / "run", shutil.copytree(stored / "run", stored / "untrained")
    restored = train(untrained, 2, STEP)
    assert restored["weights_sha256"] == (stored / "weights_sha256.txt").read_text().strip()
    train(run, 2, LAST_STEP)
    verified = json.loads(run_ddp_bp("checkpoint", "verify", run, "--json").stdout)
    assert verified == [{"path": str(checkpoint_of(run, step)), "problems": []} for step in (LAST_STEP, STEP)]
    assert run_ddp_bp("ledger", "verify", run).returncode == 0
    after = load_checkpoint(checkpoint_of(run, LAST_STEP)).model
    expected = safetensors.numpy.load_file(stored / f"after-step-{LAST_STEP}.safetensors")
    assert after.keys() == expected.keys()
    # Last bits are those of the processor and of NumPy: 3e-8 apart were seen. Training moves weights by 4e-2.
    for name, values in expected.items():
        np.testing.assert_allclose(after[name], values, rtol=0, atol=1e-5, err_msg=name)


def test_what_a_later_version_has_left_is_not_begun_anew(stored: Path, run_ddp_bp) -> None:
    run = stored / "run"
    checkpoint = load_checkpoint(checkpoint_of(run, STEP))
    later = msgspec.structs.replace(checkpoint.manifest, step=STEP + 1, format_version=FORMAT_VERSION + 1)
    path = CheckpointStore(run / "checkpoints").write(later, checkpoint.model, checkpoint.optimizer)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    done = run_ddp_bp("train", stored / "recipe.toml", "--run-dir", run, "--set", "train.max_steps=11")
    assert done.returncode == 2 and f"{path / 'manifest.json'} has format version {FORMAT_VERSION + 1}" in done.stderr
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
