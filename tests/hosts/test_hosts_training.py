"""Training on several hosts, started over ssh: ranks of different hosts share no memory, and the bits are the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hosts import NETWORK, Hosts
from measure_links import DELAY, RATE, measure
from support import ddp_bp, run_to_end, summary_of

pytestmark = [pytest.mark.mpi, pytest.mark.hosts]

SAME = ("weights_sha256", "ledger_sha256", "train_loss", "eval_loss", "eval_accuracy")
JOBS = Path(__file__).parent.parent / "jobs"

RECIPE = """
[model]
factory = "job_models:everything"
[data]
name = "digits"
input_shape = [1, 8, 8]
[train]
epochs = 1
batch_size = 142
shards = 7
ema_decay = 0.9
[optimizer]
name = "lamb"
lr = 0.01
clip_norm = 0.5
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copy(JOBS / "job_models.py", folder)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder / "recipe.toml"


@pytest.fixture(scope="module")
def alone(recipe: Path) -> dict:
    """The summary of one process."""
    result = run_to_end(ddp_bp("train", recipe, "--run-dir", recipe.parent / "alone", "--json"), 90)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("slots", "overlap"),
    [([1, 1], "auto"), ([1, 1, 1], "on"), ([2, 1, 2], "on"), ([2, 1, 2], "off")],
    ids=["1+1", "1+1+1-on", "2+1+2-on", "2+1+2-off"],
)
def test_one_hash_whatever_the_hosts(
    hosts: Hosts, recipe: Path, alone: dict, tmp_path: Path, slots: list[int], overlap: str
) -> None:
    arguments = ["-m", "ddp_bp", "worker", recipe, "--run-dir", tmp_path / "run"]
    arguments += ["--set", f"exchange.overlap={overlap}"]
    result = hosts.mpirun(slots, [*arguments, "--set", f"coordinator.host={hosts.addresses[0]}"])
    assert result.returncode == 0, result.stderr
    summary = summary_of(tmp_path / "run")
    assert summary["world_size"] == sum(slots)
    if overlap != "auto":
        assert f"exchanged {'during' if overlap == 'on' else 'after'} backward" in result.stderr
    assert {key: summary[key] for key in SAME} == {key: alone[key] for key in SAME}


def test_train_starts_ranks_on_the_hosts_that_it_is_given(
    hosts: Hosts, recipe: Path, alone: dict, tmp_path: Path
) -> None:
    h1, h2, h3 = hosts.addresses
    command = ddp_bp("train", recipe, "--hosts", f"{h2}:2,{h1},{h3}:2", "--run-dir", tmp_path / "run")
    result = run_to_end(hosts.inside(0, command), 90, **hosts.environment())
    assert result.returncode == 0, result.stderr
    assert f"hosts: {h1} (1 rank), {h2} (2 ranks), {h3} (2 ranks), by --hosts" in result.stdout
    assert f"coordinator.host = {h1}, where the other hosts reach it" in result.stdout
    assert f"--mca btl_tcp_if_include {NETWORK}.0/24" in result.stdout
    summary = summary_of(tmp_path / "run")
    assert summary["world_size"] == 5
    assert {key: summary[key] for key in SAME} == {key: alone[key] for key in SAME}


@pytest.mark.timeout(240)
def test_slow_links_are_measured_and_change_no_bit(hosts: Hosts, recipe: Path, tmp_path: Path) -> None:
    """The figures are for people: other work on the machine changes them."""
    assert hosts.link(RATE, DELAY).startswith("1gbit")
    told = measure(hosts, 2, batch_per_rank=32, num_repeats=3)
    print(json.dumps(told))
    assert "exchanged during backward, in buckets of " in told["choice"]
    compressed = ["--set", "exchange.compression=bf16"]
    result = run_to_end(ddp_bp("train", recipe, "--run-dir", tmp_path / "alone", "--json", *compressed), 90)
    assert result.returncode == 0, result.stderr
    arguments = ["-m", "ddp_bp", "worker", recipe, "--run-dir", tmp_path / "run", *compressed]
    arguments += ["--set", f"coordinator.host={hosts.addresses[0]}", "--set", "exchange.overlap=on"]
    apart = hosts.mpirun([1, 1, 1], arguments)
    assert apart.returncode == 0, apart.stderr
    alone, summary = json.loads(result.stdout), summary_of(tmp_path / "run")
    assert {key: summary[key] for key in SAME} == {key: alone[key] for key in SAME}


@pytest.mark.timeout(240)
def test_ranks_that_wait_long_for_much_to_be_put_back_are_not_taken_for_hung(hosts: Hosts, tmp_path: Path) -> None:
    """96 MB, which take 8 s on that link, are twice as long on their way as anybody may make no progress."""
    run_dir = tmp_path / "run"
    options = ["--set", "model.options.hidden=[2800,2800]", "--set", "train.shards=2", "--run-dir", run_dir]
    first = run_to_end(ddp_bp("train", "digits", "-n", 1, *options, "--set", "train.max_steps=1"), 90)
    assert first.returncode == 0, first.stderr
    options += ["--set", "train.max_steps=2", "--set", "fault.hang_seconds=4"]
    options += ["--set", f"coordinator.host={hosts.addresses[0]}"]
    hosts.link("100mbit", DELAY)
    try:
        result = hosts.mpirun([1, 1], ["-m", "ddp_bp", "worker", "digits", *options])
    finally:
        hosts.link(RATE, DELAY)
    assert result.returncode == 0, result.stderr
    assert summary_of(run_dir)["resumed_from_step"] == 1 and not (run_dir / "faults.jsonl").exists()
