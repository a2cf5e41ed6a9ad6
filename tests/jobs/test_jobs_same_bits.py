"""The promise, with real processes: one hash for any number of workers, and after any end and resume."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from job_histories import assert_ledger_is_one_history, assert_same
from support import ddp_bp, leftovers, mpi_name, processes_of, run_to_end, summary_of, wait_for_step, wait_until

pytestmark = pytest.mark.mpi


@pytest.mark.timeout(300)
def test_digits_has_one_hash_on_1_2_3_and_4_workers_and_97_percent(run_ddp_bp, tmp_path: Path) -> None:
    summaries = []
    for size in (1, 2, 3, 4):
        run_dir = tmp_path / str(size)
        result = run_ddp_bp("train", "digits", "-n", size, "--run-dir", run_dir, "--json")
        assert result.returncode == 0, result.stderr
        summary = json.loads(result.stdout)
        assert summary == summary_of(run_dir)
        assert summary["world_size"] == size
        summaries.append(summary)
    for summary in summaries[1:]:
        assert_same(summary, summaries[0])
    assert summaries[0]["eval_accuracy"] >= 0.97


@pytest.mark.parametrize(("num_shards", "sizes"), [(8, (1, 2, 3, 4, 7)), (7, (1, 2))])
def test_any_number_of_workers_has_the_same_bits_for_any_number_of_shards_under_every_mpi(
    tmp_path: Path, other_pythons: list[Path], num_shards: int, sizes: tuple[int, ...]
) -> None:
    """Ranks with unequal runs of shards; and the MPI of another environment, if one is named."""
    jobs = [(Path(sys.executable), size) for size in sizes] + [(python, sizes[-1]) for python in other_pythons]
    summaries = []
    for number, (python, size) in enumerate(jobs):
        train = [python, "-m", "ddp_bp", "train", "digits", "-n", size, "--run-dir", tmp_path / str(number), "--json"]
        result = run_to_end([*train, "--set", "train.epochs=1", "--set", f"train.shards={num_shards}"], 90)
        assert result.returncode == 0, result.stderr
        summaries.append(json.loads(result.stdout))
    assert [summary["world_size"] for summary in summaries] == [size for _, size in jobs]
    for summary in summaries[1:]:
        assert_same(summary, summaries[0])


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_buckets_that_cross_between_nodes_change_no_bit(
    run_ddp_bp, slow_recipe: Path, tmp_path: Path, undisturbed: dict, overlap: str
) -> None:
    """Each of 3 ranks is a node of its own; the run is begun so, and ended on one node."""
    train = ["train", slow_recipe, "--run-dir", tmp_path / "run", "--json"]
    apart = ["--set", "exchange.algorithm=messages", "--set", f"exchange.overlap={overlap}"]
    result = run_ddp_bp(*train, "-n", 3, *apart, "--set", "train.max_steps=20")
    assert result.returncode == 0, result.stderr
    expected = {"on": "during backward, in buckets of ", "off": "after backward, as exchange.overlap says"}[overlap]
    assert f"gradients between 3 nodes: exchanged {expected}" in result.stderr
    result = run_ddp_bp(*train, "-n", 2)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert_same(summary, undisturbed)
    assert_ledger_is_one_history(tmp_path / "run", summary)


def test_compressed_gradients_have_the_same_bits_on_any_workers_and_after_a_resume(
    run_ddp_bp, slow_recipe: Path, tmp_path: Path
) -> None:
    compressed = ["train", slow_recipe, "--json", "--set", "exchange.compression=bf16", "--set", "train.epochs=1"]
    result = run_ddp_bp(*compressed, "--run-dir", tmp_path / "alone")
    assert result.returncode == 0, result.stderr
    alone = json.loads(result.stdout)
    apart = ["--set", "exchange.algorithm=messages", "--set", "exchange.overlap=on"]
    begun = [*compressed, "--run-dir", tmp_path / "run"]
    result = run_ddp_bp(*begun, "-n", 3, *apart, "--set", "train.max_steps=9")
    assert result.returncode == 0, result.stderr
    result = run_ddp_bp(*begun, "-n", 2)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert_same(summary, alone)
    assert summary["resumed_from_step"] == 9
    # It is another run than one whose gradients are not compressed.
    result = run_ddp_bp("train", slow_recipe, "--run-dir", tmp_path / "run", "--set", "train.epochs=1")
    assert result.returncode == 2
    assert "exchange.compression" in result.stderr


@pytest.mark.parametrize("size", [2, 3, 5])
def test_dropout_uneven_batches_and_idle_ranks_change_no_bit(
    run_ddp_bp, slow_recipe: Path, tmp_path: Path, undisturbed: dict, size: int
) -> None:
    """5 ranks share 3 shards: two of them compute nothing and still update their slices."""
    result = run_ddp_bp("train", slow_recipe, "-n", size, "--run-dir", tmp_path / "run", "--json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert_same(summary, undisturbed)
    assert_ledger_is_one_history(tmp_path / "run", summary)


@pytest.mark.parametrize(
    ("name", "exit_code", "sizes"), [("SIGTERM", 143, (2, 3)), ("SIGINT", 130, (3, 1)), ("SIGUSR1", 75, (2, 1))]
)
def test_a_signal_saves_a_checkpoint_and_a_resume_goes_on_with_the_same_bits(
    start_command, run_ddp_bp, slow_recipe: Path, tmp_path: Path, undisturbed: dict, name: str, exit_code: int, sizes
) -> None:
    run_dir, before = tmp_path / "run", leftovers()
    process = start_command(ddp_bp("train", slow_recipe, "-n", sizes[0], "--run-dir", run_dir))
    wait_for_step(run_dir, random.randrange(1, 25))
    process.send_signal(signal.Signals[name])
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == exit_code, stderr
    assert stderr == ""
    stopped_at = summary_of(run_dir)["steps"]
    assert f"step-{stopped_at:08d}" in stdout
    assert processes_of(run_dir) == []
    assert leftovers() == before
    result = run_ddp_bp("train", slow_recipe, "-n", sizes[1], "--run-dir", run_dir, "--resume", "auto", "--json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["resumed_from_step"] == stopped_at
    assert_same(summary, undisturbed)
    assert_ledger_is_one_history(run_dir, summary)


@pytest.mark.parametrize("attempt", range(3))
def test_kill_9_of_everything_loses_nothing_that_a_resume_does_not_restore(
    start_command, run_ddp_bp, slow_recipe: Path, tmp_path: Path, undisturbed: dict, attempt: int
) -> None:
    run_dir = tmp_path / "run"
    start_command(ddp_bp("train", slow_recipe, "-n", 2 + attempt % 2, "--run-dir", run_dir))
    wait_for_step(run_dir, random.randrange(1, 40))
    victims = processes_of(run_dir)
    assert len(victims) >= 4, "expected train, mpirun, coordinator and workers"
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
    wait_until(lambda: not processes_of(run_dir), "the killed processes to be gone")
    result = run_ddp_bp("train", slow_recipe, "-n", 3 - attempt % 2, "--run-dir", run_dir, "--resume", "auto", "--json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert_same(summary, undisturbed)
    assert_ledger_is_one_history(run_dir, summary)


def test_a_launcher_of_the_users_own_is_the_same_job(
    mpirun, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    run_dir = tmp_path / "run"
    result = mpirun(2, ["-m", "ddp_bp", "worker", slow_recipe, "--run-dir", run_dir])
    assert result.returncode == 0, result.stderr
    assert "coordinator http://" in result.stdout
    assert f"2 ranks, {mpi_name()}" in result.stdout
    assert "epoch 3/3" in result.stdout
    assert_same(summary_of(run_dir), undisturbed)
    assert processes_of(run_dir) == []


def test_a_worker_without_a_launcher_is_a_job_of_one_process(
    run_ddp_bp, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    result = run_ddp_bp("worker", slow_recipe, "--run-dir", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert "1 ranks, one process, no MPI" in result.stdout
    assert_same(summary_of(tmp_path / "run"), undisturbed)


def test_a_finished_run_is_not_trained_again_and_can_be_prolonged(
    run_ddp_bp, other_recipe_folder: Path, undisturbed: dict, slow_recipe: Path, tmp_path: Path
) -> None:
    run_dir = other_recipe_folder / "run"
    recipe = other_recipe_folder / "slow.toml"
    before = (run_dir / "summary.json").stat().st_mtime_ns
    again = run_ddp_bp("train", recipe, "-n", 2, "--run-dir", run_dir, "--json")
    assert json.loads(again.stdout) == undisturbed
    assert (run_dir / "summary.json").stat().st_mtime_ns == before
    # Two epochs and then a third are three epochs.
    shorter = run_ddp_bp("train", slow_recipe, "--set", "train.epochs=2", "--run-dir", tmp_path / "run", "--json")
    assert json.loads(shorter.stdout)["steps"] == 42
    longer = run_ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", tmp_path / "run", "--json")
    assert_same(json.loads(longer.stdout), undisturbed)
