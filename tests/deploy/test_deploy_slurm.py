"""The job scripts under a real Slurm: taken off their nodes, queued again, finished with the bits of one process."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from slurm import NODES, Slurm, variables_of, why_no_pmix, why_not
from support import ddp_bp, mpi_name, processes_of, run_to_end, summary_of, wait_for_step, wait_until

SCRIPTS = Path(__file__).parents[2] / "deploy" / "slurm"

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(240)]

RECIPE = """
[model]
factory = "deploy_models:straggling"
options = { slow_rank = -1, pause_seconds = 0.01 }
[data]
name = "digits"
[train]
epochs = 9
batch_size = 72
shards = 2
[checkpoint]
every_steps = 10
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory):
    if reason := why_not():
        pytest.skip(reason)
    with Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of 180 steps of about 20 ms on one rank."""
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copy(Path(__file__).parent / "deploy_models.py", folder)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "quick.toml").write_text(RECIPE.replace("pause_seconds = 0.01", "pause_seconds = 0.0"))
    return folder / "recipe.toml"


@pytest.fixture(scope="module")
def alone(recipe: Path) -> dict:
    """The summary of one process that nobody disturbs, and that does not pause in its steps."""
    command = ddp_bp("train", recipe.parent / "quick.toml", "-n", 1, "--run-dir", recipe.parent / "alone", "--json")
    result = run_to_end(command, 90)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def submit(
    slurm: Slurm, output: Path, script: str, *arguments: object, options: Sequence[str] = (), **environment: object
) -> int:
    """`sbatch` one of the scripts, with further options of sbatch and environment variables: the job's number."""
    variables = ",".join(["ALL", *(f"{name}={value}" for name, value in environment.items())])
    return slurm.submit(f"--export={variables}", f"--output={output}", *options, SCRIPTS / script, *arguments)


def wait_for_checkpoint(run_dir: Path, step: int) -> None:
    """Until there is a checkpoint of this step or a later one."""
    checkpoints, least = run_dir / "checkpoints", f"step-{step:08}"
    wait_until(lambda: any(path.name >= least for path in checkpoints.glob("step-*")), f"a checkpoint of step {step}")


def give_way(slurm: Slurm, job: int, num_restarts: int) -> None:
    """Have another job take the nodes from this one, which is then queued again for the so-many-th time."""
    urgent = slurm.submit("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=srun true")
    slurm.wait_for_restart(job, num_restarts)
    assert slurm.wait_for_end(urgent)["JobState"] == "COMPLETED"


def rank_of(run_dir: Path, rank: int) -> psutil.Process:
    """The process of a rank that srun started, on whichever node."""
    mark = f"SLURM_PROCID={rank}".encode()
    # Not srun, nor the coordinator, which is a child of rank 0.
    (found,) = (
        process
        for process in processes_of(run_dir)
        if mark in variables_of(process) and "worker" in process.cmdline() and "srun" not in process.name()
    )
    return found


def assert_same(summary: dict, alone: dict) -> None:
    for key in ("steps", "weights_sha256", "ledger_sha256", "train_loss", "eval_loss"):
        assert summary[key] == alone[key], key


def test_scripts_have_nothing_that_shellcheck_warns_of() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck (Debian: apt-get install shellcheck)")
    scripts = sorted(SCRIPTS.glob("*.sbatch"))
    assert [script.name for script in scripts] == ["sweep.sbatch", "train.sbatch", "worker.sbatch"]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_train_gives_way_to_a_job_of_higher_priority_and_goes_on(
    slurm: Slurm, recipe: Path, alone: dict, tmp_path: Path
) -> None:
    run_dir, output = tmp_path / "run", tmp_path / "out"
    job = submit(slurm, output, "train.sbatch", recipe, RUN_DIR=run_dir)
    wait_for_step(run_dir, 15)
    assert slurm.job(job)["NumNodes"] == "2"
    give_way(slurm, job, 1)
    ended = slurm.wait_for_end(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), output.read_text()
    summary = summary_of(run_dir)
    assert summary["world_size"] == 2 and summary["resumed_from_step"] >= 15
    assert_same(summary, alone)


def submit_ranks(slurm: Slurm, recipe: Path, folder: Path, *shape: str) -> int:
    """A job of 2 ranks that srun starts; it has reached a checkpoint. Its run directory is `folder / "run"`."""
    if reason := why_no_pmix() or ("srun with PMIx starts ranks of Open MPI" if mpi_name() != "Open MPI" else None):
        pytest.skip(reason)
    job = submit(slurm, folder / "out", "worker.sbatch", recipe, options=shape, RUN_DIR=folder / "run")
    wait_for_checkpoint(folder / "run", 20)
    return job


def test_ranks_of_srun_on_two_nodes_go_on_after_a_killed_rank_and_after_giving_way(
    slurm: Slurm, recipe: Path, alone: dict, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    job = submit_ranks(slurm, recipe, tmp_path)
    ranks = [rank_of(run_dir, rank) for rank in (0, 1)]
    nodes = [f"SLURMD_NODENAME={node}".encode() for node in NODES]
    assert [node in variables_of(rank) for rank, node in zip(ranks, nodes, strict=True)] == [True, True]
    ranks[1].kill()
    slurm.wait_for_restart(job, 1)
    wait_for_checkpoint(run_dir, 40)
    give_way(slurm, job, 2)
    ended = slurm.wait_for_end(job)
    text = (tmp_path / "out").read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "2"), text
    assert text.count("queued again, to go on from") == 2
    summary = summary_of(run_dir)
    assert summary["world_size"] == 2 and summary["resumed_from_step"] >= 40
    assert_same(summary, alone)


def test_ranks_of_srun_on_one_node_go_on_after_an_announced_end(
    slurm: Slurm, recipe: Path, alone: dict, tmp_path: Path
) -> None:
    job = submit_ranks(slurm, recipe, tmp_path, "--nodes=1", "--ntasks-per-node=2")
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    slurm.wait_for_restart(job, 1)
    ended = slurm.wait_for_end(job)
    text = (tmp_path / "out").read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), text
    assert "exit code 75: queued again, to go on from" in text
    summary = summary_of(tmp_path / "run")
    assert summary["world_size"] == 2 and summary["resumed_from_step"] >= 20
    assert_same(summary, alone)


def test_of_an_array_only_the_task_whose_end_was_announced_is_queued_again(
    slurm: Slurm, recipe: Path, tmp_path: Path
) -> None:
    settings, output = tmp_path / "settings.txt", tmp_path / "out-%a"
    settings.write_text("optimizer.lr=0.01 train.seed=1\noptimizer.lr=0.02\n")
    sweep = ("sweep.sbatch", settings, recipe, "--set", "train.epochs=5")
    array = submit(slurm, output, *sweep, options=["--array=1-2"], RUNS=tmp_path)
    step = [wait_for_step(tmp_path / str(task), 5)["step"] for task in (1, 2)][1]
    slurm.run("scancel", "--batch", "--signal=USR1", f"{array}_2")
    slurm.run("scancel", f"{array}_1")
    slurm.wait_for_restart(f"{array}_2", 1)
    ended = [slurm.wait_for_end(f"{array}_{task}") for task in (1, 2)]
    assert [(job["JobState"], job["Restarts"]) for job in ended] == [("CANCELLED", "0"), ("COMPLETED", "1")]
    recipes = [json.loads((tmp_path / str(task) / "recipe.json").read_bytes()) for task in (1, 2)]
    assert [(used["optimizer"]["lr"], used["train"]["seed"]) for used in recipes] == [(0.01, 1), (0.02, 0)]
    summary = summary_of(tmp_path / "2")
    assert summary["steps"] == 100 and summary["resumed_from_step"] >= step
    assert "SIGUSR1: saving a checkpoint, then ending" in (tmp_path / "out-2").read_text()
