"""A running job seen from outside: a real Prometheus, the command line, a real browser; and its weights in PyTorch."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from support import ddp_bp, end_tree, status_of, summary_of, wait_for_step, wait_until

pytestmark = pytest.mark.mpi

LONG = ("--set", "train.epochs=1000", "--set", "checkpoint.every_steps=0")


@pytest.fixture
def long_job(start_command, slow_recipe: Path, tmp_path: Path):
    """A job of 2 workers that runs until the test ends; its run directory."""
    run_dir = tmp_path / "run"
    start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, *LONG))
    wait_for_step(run_dir, 1)
    return run_dir


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.mark.prometheus
def test_a_real_prometheus_computes_the_95th_percentile_of_backward_time(long_job: Path, tmp_path: Path) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("needs Prometheus (Debian: apt-get install prometheus)")
    target = json.loads((long_job / "coordinator.json").read_bytes())["url"].removeprefix("http://").rstrip("/")
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 250ms}\n"
        f"scrape_configs: [{{job_name: ddp_bp, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    port = free_port()
    server = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def query(expression: str) -> list[dict]:
        address = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        try:
            with urllib.request.urlopen(address, timeout=5) as reply:
                return json.load(reply)["data"]["result"]
        except OSError:
            return []

    def percentiles() -> dict[str, float] | None:
        by_rank = "sum by (rank, le) (rate(ddp_bp_backward_seconds_bucket[10s]))"
        found = {row["metric"]["rank"]: float(row["value"][1]) for row in query(f"histogram_quantile(0.95, {by_rank})")}
        return found if len(found) == 2 and all(value > 0 for value in found.values()) else None

    try:
        values = wait_until(percentiles, "a 95th percentile of backward time for both ranks", 40)
        # The slow model sleeps 20 ms in its forward pass, so none of that may be in the backward time.
        assert all(0 < value < 0.02 for value in values.values())
        forward = query("histogram_quantile(0.5, sum by (le) (rate(ddp_bp_forward_seconds_bucket[10s])))")
        assert float(forward[0]["value"][1]) >= 0.02
        assert query("ddp_bp_world_size")[0]["value"][1] == "2"
        assert float(query("ddp_bp_samples_total")[0]["value"][1]) > 0
    finally:
        end_tree(server)


def test_status_and_checkpoints_from_the_command_line(run_ddp_bp, long_job: Path) -> None:
    status = json.loads(run_ddp_bp("status", long_job, "--json").stdout)
    assert status["state"] == "training"
    assert [rank["rank"] for rank in status["ranks"]] == [0, 1]
    table = run_ddp_bp("status", long_job).stdout
    for part in ("training", "backward", "waiting for ranks", status["ranks"][1]["hostname"]):
        assert part in table
    assert json.loads(run_ddp_bp("checkpoint", "ls", long_job, "--json").stdout) == []
    taken = run_ddp_bp("checkpoint", "now", long_job, "--json")
    assert taken.returncode == 0, taken.stderr
    checkpoint = json.loads(taken.stdout)
    assert Path(checkpoint["path"]).name == f"step-{checkpoint['step']:08d}"
    listed = json.loads(run_ddp_bp("checkpoint", "ls", long_job, "--json").stdout)
    assert [row["step"] for row in listed] == [checkpoint["step"]]
    assert str(checkpoint["step"]) in run_ddp_bp("checkpoint", "ls", long_job).stdout
    verified = run_ddp_bp("checkpoint", "verify", checkpoint["path"])
    assert (verified.returncode, "valid" in verified.stdout) == (0, True)
    assert status_of(long_job)["step"] > checkpoint["step"], "training goes on"


def test_checkpoints_by_the_clock(start_command, slow_recipe: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = ["--set", "checkpoint.every_seconds=0.3", *LONG]
    start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, *options))
    wait_until(
        lambda: (status_of(run_dir) or {"checkpoints": {"count": 0}})["checkpoints"]["count"] >= 3, "3 checkpoints"
    )


def test_the_live_page_shows_the_job_in_a_real_browser(long_job: Path, tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    url = json.loads((long_job / "coordinator.json").read_bytes())["url"]
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", url]
    page = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    for part in ("training", "slow.toml", "backward"):
        assert part in page
    assert 'src="http' not in page, "nothing may be loaded from elsewhere"


@pytest.mark.parity
def test_the_weights_load_into_pytorch_and_give_the_same_logits(run_ddp_bp, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    safetensors_torch = pytest.importorskip("safetensors.torch")
    import ddp_bp as ddp
    from ddp_bp.data import DataSpec, load
    from ddp_bp.nn.models import mlp

    run_dir = tmp_path / "run"
    result = run_ddp_bp("train", "digits", "-n", 2, "--set", "train.epochs=3", "--run-dir", run_dir)
    assert result.returncode == 0, result.stderr
    path = Path(summary_of(run_dir)["checkpoint"]) / "model.safetensors"
    theirs = torch.nn.Sequential(
        torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Dropout(0.3),
        torch.nn.Linear(256, 128), torch.nn.ReLU(), torch.nn.Dropout(0.3),
        torch.nn.Linear(128, 10),
    )  # fmt: skip
    weights = safetensors_torch.load_file(path)
    theirs.load_state_dict(weights, strict=True)
    ours = mlp((64,), 10, hidden=(256, 128), dropout=0.3)
    ours.load_state_dict({name: tensor.numpy() for name, tensor in weights.items()})
    held_out = load(DataSpec(name="digits")).evaluation
    assert held_out is not None
    inputs, targets = held_out.batch(np.arange(held_out.num_samples))
    theirs.eval()
    ours.eval()
    with torch.no_grad(), ddp.no_grad():
        expected = theirs(torch.from_numpy(inputs)).numpy()
        got = ours(ddp.tensor(inputs)).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert (expected.argmax(1) == targets).mean() == summary_of(run_dir)["eval_accuracy"]
