"""The packaged recipes, cut short: one hash for 1, 2 and 3 workers, with real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.mpi

SAME = ("weights_sha256", "ledger_sha256", "train_loss", "eval_loss", "eval_accuracy", "steps", "sample")
SHORT = {
    "digits-cnn": ["train.epochs=2"],
    "diabetes": ["train.epochs=5"],
    "shakespeare-gpt": [
        "train.max_steps=4",
        "train.eval_every_epochs=0",
        "model.options.num_layers=2",
        "sample.characters=30",
        # 8 windows held out, so that the evaluation at the end takes no time.
        "data.eval_fraction=0.001",
    ],
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", SHORT)
def test_it_has_one_hash_on_1_2_and_3_workers(run_ddp_bp, tmp_path: Path, name: str) -> None:
    overrides = [argument for override in SHORT[name] for argument in ("--set", override)]
    summaries = []
    for size in (1, 2, 3):
        result = run_ddp_bp("train", name, "-n", size, *overrides, "--run-dir", tmp_path / str(size), "--json")
        assert result.returncode == 0, result.stderr
        summaries.append(json.loads(result.stdout))
    assert len(summaries[0].get("sample", "x" * 30)) >= 30
    for summary in summaries[1:]:
        assert {key: summary.get(key) for key in SAME} == {key: summaries[0].get(key) for key in SAME}
