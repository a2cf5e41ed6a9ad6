"""A recipe whose steps are slow enough to be disturbed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import ddp_bp, run_to_end

SLOW_RECIPE = """
[model]
factory = "job_models:slow"
[data]
name = "digits"
[train]
epochs = 3
batch_size = 71      # 1438 samples: not divisible, so that the last batch of an epoch is smaller
shards = 3
[optimizer]
name = "adamw"
lr = 0.01
[checkpoint]
every_steps = 7
[fault]
respawn = false      # ranks that are left go on alone
"""
SLOW_RECIPE_STEPS = 63


def write_slow_recipe(folder: Path) -> Path:
    (folder / "job_models.py").write_text((Path(__file__).parent / "job_models.py").read_text())
    path = folder / "slow.toml"
    path.write_text(SLOW_RECIPE)
    return path


@pytest.fixture
def slow_recipe(tmp_path: Path) -> Path:
    """A recipe of 63 steps of about 60 ms on one rank, with dropout, and a model module beside it."""
    return write_slow_recipe(tmp_path)


@pytest.fixture(scope="session")
def other_recipe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the slow recipe that lives as long as the tests do."""
    folder = tmp_path_factory.mktemp("slow")
    write_slow_recipe(folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed(other_recipe_folder: Path) -> dict:
    """The summary of the slow recipe on one rank, never interrupted."""
    folder = other_recipe_folder
    result = run_to_end(ddp_bp("train", folder / "slow.toml", "--run-dir", folder / "run", "--json"), 90)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["steps"] == SLOW_RECIPE_STEPS
    return summary
