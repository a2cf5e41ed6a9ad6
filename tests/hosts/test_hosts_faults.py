"""Hosts that are unfit are named before anything starts; one that is lost costs a restart on the others, and no bit."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path

import pytest
from hosts import NETWORK, Hosts
from support import ddp_bp, end_tree, processes_of, run_to_end, start, summary_of, wait_until

import ddp_bp as package

pytestmark = [pytest.mark.mpi, pytest.mark.hosts]

SAME = ("weights_sha256", "ledger_sha256", "train_loss", "eval_loss", "eval_accuracy")
RECIPE = """
[model]
factory = "job_models:slow"
options = { sleep_seconds = 0.1 }
[data]
name = "digits"
[train]
epochs = 1
batch_size = 71
shards = 4
[checkpoint]
every_steps = 5
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 steps, which take 0.1 s and more for each shard of a rank."""
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copy(Path(__file__).parent.parent / "jobs" / "job_models.py", folder)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "quick.toml").write_text(RECIPE.replace("sleep_seconds = 0.1", "sleep_seconds = 0.0"))
    return folder / "recipe.toml"


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> dict:
    """The summary of one process, which does not wait in its steps."""
    command = ddp_bp("train", recipe.parent / "quick.toml", "--run-dir", recipe.parent / "alone", "--json")
    result = run_to_end(command, 60)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def train(hosts: Hosts, recipe: Path, run_dir: Path, where: str, *options: object) -> list[str]:
    return hosts.inside(0, ddp_bp("train", recipe, "--hosts", where, "--run-dir", run_dir, *options))


def test_everything_that_is_wrong_with_hosts_is_said_at_once(hosts: Hosts, recipe: Path, tmp_path: Path) -> None:
    h1, h2, h3 = hosts.addresses
    nobody, run_dir = f"{NETWORK}.99", tmp_path / "run"
    other = tmp_path / "version.py"
    version = Path(package.__file__).with_name("_version.py")
    other.write_text(version.read_text().replace(package.__version__, "0.0.1"))
    (empty := tmp_path / "empty").mkdir()
    hosts.start(1, {other: version, empty: recipe.parent})
    try:
        # An address of this host that the others have no way to.
        aside = ["sh", "-c", 'ip address add 10.254.254.1/32 dev lo; exec "$@"', "sh"]
        command = [*aside, *ddp_bp("train", recipe, "--hosts", f"{h1},{h2},{h3},{nobody}", "--run-dir", run_dir)]
        command += ["--set", "coordinator.host=10.254.254.1"]
        result = run_to_end(hosts.inside(0, command), 60, **hosts.environment())
    finally:
        hosts.start(1)
    assert result.returncode == 2 and not run_dir.exists()
    said = result.stderr.splitlines()
    assert said[0] == "ddp-bp: the job cannot start on these hosts:"
    for host, what in (
        (nobody, "expected ssh to log in without a password, got "),
        (h2, f"expected ddp_bp {package.__version__}, as on this host, got 0.0.1; install the same there"),
        (h2, "expected the code of ddp_bp "),
        (h2, f"expected {recipe.parent / 'job_models.py'}"),
        (h3, "expected to reach the coordinator, which will be here at 10.254.254.1:"),
    ):
        assert any(line.startswith(f"  {host}: {what}") for line in said), (host, what, result.stderr)


def test_rank_0_on_a_host_without_the_run_directory_is_refused(hosts: Hosts, recipe: Path, tmp_path: Path) -> None:
    _, h2, h3 = hosts.addresses
    (empty := tmp_path / "empty").mkdir()
    (run_dir := tmp_path / "run").mkdir()
    hosts.start(1, {empty: run_dir})
    try:
        # With none due, one may be taken all the same, to go on from with others in the place of dead ranks.
        command = train(hosts, recipe, run_dir, f"{h2},{h3}", "--set", "checkpoint.every_steps=0")
        result = run_to_end(command, 60, **hosts.environment())
    finally:
        hosts.start(1)
    assert result.returncode == 2 and list(run_dir.iterdir()) == []
    assert result.stderr.count("expected to see the run directory") == 1
    assert f"  {h2}: expected to see the run directory {run_dir}, since rank 0 reads checkpoints there" in result.stderr


@pytest.mark.parametrize("link", ["killed", "dark"])
def test_a_host_that_is_lost_costs_a_restart_on_the_others_and_no_bit(
    hosts: Hosts, recipe: Path, undisturbed: dict, tmp_path: Path, link: str
) -> None:
    h1, h2, h3 = hosts.addresses
    run_dir = tmp_path / "run"
    process = start(
        train(hosts, recipe, run_dir, f"{h1}:1,{h2}:2,{h3}:1", "--set", "fault.orphan_seconds=10"),
        **hosts.environment(),
    )
    try:
        wait_until(lambda: list((run_dir / "checkpoints").glob("step-*")), "the first checkpoint")
        lose = hosts.kill if link == "killed" else hosts.cut
        lose(1)
        # Ranks that are cut off end by themselves.
        wait_until(lambda: not hosts.processes(1), "the end of the ranks that were lost", 25)
        _, stderr = process.communicate(timeout=60)
    finally:
        end_tree(process)
        hosts.cut(1, again=True)
        hosts.start(1)
    assert process.returncode == 0, stderr
    assert f"ddp-bp: host {h2} is left out: expected ssh to log in without a password, got " in stderr
    assert f"ddp-bp: hosts: {h1} (1 rank), {h3} (1 rank)" in stderr
    if link == "dark":
        assert f"on {hosts.names[1]} for 15 s; going on from step " in stderr
    summary = summary_of(run_dir)
    assert (summary["world_size"], summary["recoveries"]) == (2, 1)
    assert summary["resumed_from_step"] >= 5
    assert {key: summary[key] for key in SAME} == {key: undisturbed[key] for key in SAME}
    wait_until(lambda: not processes_of(run_dir), "the end of all ranks", 10)


def test_a_host_that_goes_dark_while_ranks_start_is_left_out(
    hosts: Hosts, recipe: Path, undisturbed: dict, tmp_path: Path
) -> None:
    h1, h2, h3 = hosts.addresses
    run_dir = tmp_path / "run"
    options = ["--set", "fault.start_seconds=15", "--set", "fault.silence_seconds=8"]
    process = start(train(hosts, recipe, run_dir, f"{h1}:1,{h2}:2,{h3}:1", *options), **hosts.environment())
    try:
        # Ranks have been started there, and none has joined, since that takes all of them.
        wait_until(lambda: hosts.processes(1), "ranks on the second host")
        hosts.cut(1)
        # They end by themselves, although nobody reaches them any more.
        wait_until(lambda: not hosts.processes(1), "the end of the ranks that were lost", 60)
        _, stderr = process.communicate(timeout=100)
    finally:
        end_tree(process)
        hosts.cut(1, again=True)
        hosts.start(1)
    assert process.returncode == 0, stderr
    assert "ddp-bp: restart 1 of 3: " in stderr and f"ddp-bp: host {h2} is left out: " in stderr
    summary = summary_of(run_dir)
    assert summary["world_size"] == 2
    assert {key: summary[key] for key in SAME} == {key: undisturbed[key] for key in SAME}
    wait_until(lambda: not processes_of(run_dir), "the end of all ranks", 30)


def test_a_partition_that_ends_commits_nothing_twice(
    hosts: Hosts, recipe: Path, tmp_path: Path, partition_seconds: float
) -> None:
    """The job goes on with the one rank on its coordinator's host; the other three live, and are back in the middle."""
    h1, h2, h3 = hosts.addresses
    # An epoch has 21 steps, of 0.4 s at least on that rank; so there are some left when the others are back.
    epochs = ["--set", f"train.epochs={math.ceil((partition_seconds + 3) / 0.4 / 21)}"]
    undisturbed = run_to_end(
        ddp_bp("train", recipe.parent / "quick.toml", *epochs, "--run-dir", tmp_path / "alone"), 90
    )
    assert undisturbed.returncode == 0, undisturbed.stderr
    run_dir = tmp_path / "run"
    # They wait for longer than the link is away: who ends by itself does no harm.
    options = [*epochs, "--set", "fault.silence_seconds=4", "--set", f"fault.orphan_seconds={partition_seconds + 30}"]
    process = start(train(hosts, recipe, run_dir, f"{h1}:1,{h2}:2,{h3}:1", *options), **hosts.environment())
    try:
        wait_until(lambda: list((run_dir / "checkpoints").glob("step-*")), "the first checkpoint")
        hosts.cut(0)
        back_at = time.monotonic() + partition_seconds
        wait_until(lambda: time.monotonic() >= back_at, "the end of the partition", partition_seconds + 5)
        assert process.poll() is None, "training was over before"
        cut_off = [pid for index in (1, 2) for pid in hosts.processes(index)]
        hosts.cut(0, again=True)
        assert cut_off, "the ranks of the other side have not waited"
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in cut_off), "the end of those ranks", 20)
        _, stderr = process.communicate(timeout=60 + 2 * partition_seconds)
    finally:
        end_tree(process)
        hosts.cut(0, again=True)
        for index in range(3):
            hosts.start(index)
    assert process.returncode == 0, stderr
    summary = summary_of(run_dir)
    assert summary["recoveries"] == 1
    expected = summary_of(tmp_path / "alone")
    assert {key: summary[key] for key in SAME} == {key: expected[key] for key in SAME}
    verified = run_to_end(ddp_bp("ledger", "verify", run_dir, "--json"), 60)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads(verified.stdout)["samples"] == expected["samples"]
    lines = (run_dir / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(summary["steps"])), "each step once"
