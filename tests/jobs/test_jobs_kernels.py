"""Kernels and cores of real jobs: the same kernels on all ranks however they were started, and a core for each."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import psutil
import pytest
from support import ddp_bp, environment_options, mpi_name, mpirun, processes_of, run_to_end, summary_of, wait_for_step

pytestmark = pytest.mark.mpi

# Kernels that no OpenBLAS chooses on a processor of today, and that each of these can execute.
OLD, OLDER = "Sandybridge", "Nehalem"
SHORT = ("--set", "train.epochs=1", "--set", "train.shards=2")


def recorded(run_dir: Path) -> list[str]:
    """What the run's checkpoints say of the BLAS, oldest first."""
    manifests = sorted((run_dir / "checkpoints").glob("step-*/manifest.json"))
    return [json.loads(manifest.read_bytes())["versions"]["blas"] for manifest in manifests]


def environment_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "environment.json").read_bytes())


@pytest.fixture(autouse=True)
def kernels_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment of the tests asks for comes before all that is tried here."""
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)


def mixed(run_dir: Path, *options: str) -> list[object]:
    """Two ranks under one mpirun, each told to take other kernels."""
    worker = [sys.executable, "-m", "ddp_bp", "worker", "digits", *SHORT, "--run-dir", run_dir, *options]
    second = [*environment_options(OPENBLAS_CORETYPE=OLDER), "-n", "1"]
    return [*mpirun(1, OPENBLAS_CORETYPE=OLD), *worker, ":", *second, *worker]


def test_ranks_take_the_kernels_of_the_recipe_however_they_are_started(run_ddp_bp, mpirun, tmp_path: Path) -> None:
    """`train` tells its ranks; those of another launcher start again by themselves; a variable tells them, too."""
    asked = ("--set", f"blas.kernels={OLD}")
    trained = run_ddp_bp("train", "digits", "-n", 2, *SHORT, *asked, "--run-dir", tmp_path / "train")
    worker = ["-m", "ddp_bp", "worker", "digits", *SHORT, "--run-dir"]
    launched = mpirun(2, [*worker, tmp_path / "launched", *asked])
    told = mpirun(2, [*worker, tmp_path / "told"], OPENBLAS_CORETYPE=OLD)
    for result, reason in (
        (trained, "blas.kernels"),
        (launched, "blas.kernels"),
        (told, "OPENBLAS_CORETYPE in the environment"),
    ):
        assert (result.returncode, result.stderr) == (0, "")
        [line] = [line for line in result.stdout.splitlines() if line.startswith("BLAS: ")]
        assert line.endswith(f", {OLD} kernels ({reason}), 1 thread per rank")
    told_by_train = f" OPENBLAS_CORETYPE{'=' if mpi_name() == 'Open MPI' else ' '}{OLD} -n 2 "
    assert told_by_train in trained.stdout
    runs = [tmp_path / name for name in ("train", "launched", "told")]
    assert len({summary_of(run)["weights_sha256"] for run in runs}) == 1
    for run in runs:
        [blas] = recorded(run)
        assert blas == environment_of(run)["blas"]
        assert blas.split()[0] == "OpenBLAS" and blas.split()[-1] == OLD


def test_a_resume_goes_on_with_the_kernels_of_its_checkpoint(run_ddp_bp, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = ("digits", "--run-dir", run_dir, "--set", "train.shards=2")
    first = run_ddp_bp("train", *options, "--set", "train.epochs=1", "--set", f"blas.kernels={OLD}")
    assert first.returncode == 0, first.stderr
    second = run_ddp_bp("train", *options, "-n", 2, "--set", "train.epochs=2")
    assert (second.returncode, second.stderr) == (0, "")
    assert f"{OLD} kernels (those of the checkpoint)" in second.stdout
    third = run_ddp_bp("worker", *options, "--set", "train.epochs=3")
    assert (third.returncode, third.stderr) == (0, "")
    assert f"{OLD} kernels (those of the checkpoint)" in third.stdout
    assert [blas.split()[-1] for blas in recorded(run_dir)] == [OLD] * 3
    # Other kernels only for who asks for them, and then it says so.
    other = run_ddp_bp("worker", *options, "--set", "train.epochs=4", "--set", f"blas.kernels={OLDER}")
    assert other.returncode == 0
    assert "was written with blas OpenBLAS" in other.stderr and "bits may differ" in other.stderr
    assert recorded(run_dir)[-1].split()[-1] == OLDER


def test_ranks_with_different_kernels_refuse_to_train_together(tmp_path: Path) -> None:
    result = run_to_end(mixed(tmp_path / "run"), 60)
    assert result.returncode == 1
    assert result.stderr.count("ddp-bp: ") == 1
    host = os.uname().nodename
    assert f"{OLD} on rank 0 ({host}); OpenBLAS " in result.stderr
    assert f"{OLDER} on rank 1 ({host}). " in result.stderr
    assert "[blas] kernels = " in result.stderr
    assert not (tmp_path / "run").exists()
    assert processes_of(tmp_path / "run") == []


def test_ranks_with_different_kernels_train_together_if_they_may(tmp_path: Path) -> None:
    result = run_to_end(mixed(tmp_path / "run", "--set", "blas.allow_mixed=true"), 60)
    assert (result.returncode, result.stderr) == (0, "")
    assert summary_of(tmp_path / "run")["epochs"] == 1
    assert recorded(tmp_path / "run")[0].split()[-1] == OLD


def test_kernels_that_openblas_does_not_know_are_said_to_be_missing(run_ddp_bp, tmp_path: Path) -> None:
    result = run_ddp_bp("train", "digits", *SHORT, "--run-dir", tmp_path / "run", OPENBLAS_CORETYPE="Abacus")
    assert result.returncode == 0
    assert "warning: Abacus kernels were asked for (OPENBLAS_CORETYPE in the environment)" in result.stderr


def affinities(start_command, recipe: Path, run_dir: Path, *options: str) -> list[set[int]]:
    """Where the computing threads of two ranks may run."""
    start_command(ddp_bp("train", recipe, "-n", 2, "--run-dir", run_dir, "--set", "train.epochs=1000", *options))
    wait_for_step(run_dir, 1)
    ranks = [process for process in processes_of(run_dir) if "worker" in process.cmdline()[1:4]]
    assert len(ranks) == 2
    [coordinator] = [process for process in processes_of(run_dir) if "coordinator" in process.cmdline()[1:4]]
    assert set(coordinator.cpu_affinity()) == os.sched_getaffinity(0)
    return [set(rank.cpu_affinity()) for rank in ranks]


def test_no_two_ranks_share_a_core_where_there_is_one_for_each(
    start_command, slow_recipe: Path, tmp_path: Path
) -> None:
    first, second = affinities(start_command, slow_recipe, tmp_path / "run")
    allowed = os.sched_getaffinity(0)
    if psutil.cpu_count(logical=False) == 1 or len(allowed) == 1:
        assert first == second == allowed
    else:
        assert first and second and not first & second
        assert first | second == allowed


def test_ranks_are_not_bound_if_that_is_not_wanted(start_command, slow_recipe: Path, tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    assert affinities(start_command, slow_recipe, tmp_path / "run", "--no-bind") == [allowed, allowed]
