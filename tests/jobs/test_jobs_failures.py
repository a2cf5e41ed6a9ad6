"""What goes wrong, with real processes: a rank that raises, launchers that do not fit, input that cannot be used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from support import ddp_bp, mpi_name, mpirun, processes_of, summary_of, wait_for_step, wait_until

from ddp_bp.coordinator.address import read_address

pytestmark = pytest.mark.mpi


def ranks_of(run_dir: Path) -> list[psutil.Process]:
    """The ranks of a job, from the moment on at which they have been started."""
    return [one for one in processes_of(run_dir) if one.name().startswith("python") and "worker" in one.cmdline()]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_raises_ends_the_job_with_its_error_once_and_first(
    start_command, slow_recipe: Path, tmp_path: Path, rank: int
) -> None:
    run_dir = tmp_path / "run"
    options = ["--set", "model.factory=job_models:raising", "--set", f"model.options.rank={rank}"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, *options))
    wait_until(lambda: (run_dir / "coordinator.json").exists() or process.poll() is not None, "the coordinator")
    began = time.monotonic()
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert time.monotonic() - began < 5 + 3, "5 s for the end, and the time to start"
    lines = stderr.splitlines()
    assert lines[0].startswith(f"ddp-bp: rank {rank} failed at step ")
    assert "ArithmeticError: the model of this rank is broken" in lines[0]
    assert stderr.count("ddp-bp: rank") == 1
    assert stderr.count("Traceback") == 1
    assert "restart" not in stderr, "the error would come again"
    assert processes_of(run_dir) == []
    assert "to go on" in stdout


def test_a_model_that_exits_on_one_rank_does_not_hang_the_others(run_ddp_bp, slow_recipe: Path, tmp_path: Path) -> None:
    options = ["--set", "model.factory=job_models:exiting", "--run-dir", tmp_path / "run"]
    result = run_ddp_bp("train", slow_recipe, "-n", 2, *options, timeout_seconds=30)
    assert result.returncode == 1
    assert result.stderr.startswith("ddp-bp: rank 1 failed at step 0: SystemExit: 3")


def test_a_checkpoint_is_never_ahead_of_the_ledger(start_command, slow_recipe: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir))
    checkpoint = run_dir / "checkpoints" / "step-00000007"
    wait_until(checkpoint.exists, "the first checkpoint")
    for victim in processes_of(run_dir):
        victim.kill()
    steps = [json.loads(line)["step"] for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    assert steps[:7] == list(range(7))


def test_a_stop_before_the_workers_are_there_ends_the_job_soon(
    start_command, slow_recipe: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir))
    wait_until((run_dir / "coordinator.json").exists, "the coordinator")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert processes_of(run_dir) == []


def test_a_second_start_in_a_busy_run_directory_changes_nothing(
    start_command, run_ddp_bp, slow_recipe: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    start_command(ddp_bp("train", slow_recipe, "--run-dir", run_dir, "--set", "train.epochs=500"))
    wait_for_step(run_dir, 3)
    recipe = (run_dir / "recipe.json").read_bytes()
    second = run_ddp_bp("train", slow_recipe, "--run-dir", run_dir, "--set", "train.epochs=2")
    assert (second.returncode, second.stdout) == (2, "")
    assert "a job is running in it" in second.stderr
    assert (run_dir / "recipe.json").read_bytes() == recipe
    stopped = run_ddp_bp("stop", run_dir)
    assert stopped.returncode == 0, stopped.stderr
    wait_until(lambda: not processes_of(run_dir), "the stopped job to end", 20)
    assert summary_of(run_dir)["checkpoint"] == str(newest_checkpoint(run_dir))


def newest_checkpoint(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").glob("step-*")).resolve()


def test_a_checkpoint_of_other_data_or_of_another_recipe_is_refused(run_ddp_bp, tmp_path: Path) -> None:
    recipe = csv_recipe(tmp_path, GOOD_CSV, "num_classes = 3\n")
    first = run_ddp_bp("train", recipe, "--run-dir", tmp_path / "run", "--set", "train.epochs=2")
    assert first.returncode == 0, first.stderr
    checkpoint = newest_checkpoint(tmp_path / "run")
    lower = ["--set", "optimizer.lr=0.5", "--set", "train.epochs=3"]
    other = run_ddp_bp("train", recipe, "--run-dir", tmp_path / "new", "--resume", checkpoint, *lower)
    assert other.returncode == 2
    assert "use the recipe of its run" in other.stderr
    csv_recipe(tmp_path, GOOD_CSV + "9,9,1\n", "num_classes = 3\n")
    changed = run_ddp_bp("train", recipe, "--run-dir", tmp_path / "run", "--set", "train.epochs=3")
    assert changed.returncode == 2
    assert "the data files have changed" in changed.stderr


def test_under_a_launcher_of_the_users_own_the_error_is_first_too(mpirun, slow_recipe: Path, tmp_path: Path) -> None:
    options = ["--set", "model.factory=job_models:raising"]
    result = mpirun(3, ["-m", "ddp_bp", "worker", slow_recipe, "--run-dir", tmp_path / "run", *options])
    assert result.returncode == 1
    assert result.stderr.startswith("ddp-bp: rank 1 failed at step ")
    assert processes_of(tmp_path / "run") == []


def test_a_killed_worker_ends_the_job_and_a_resume_finishes_it(
    start_command, run_ddp_bp, slow_recipe: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    options = ["--set", "fault.recovery=none"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, *options))
    status = wait_for_step(run_dir, 10)
    os.kill(status["ranks"][1]["pid"], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    # Hydra knows processes and no ranks.
    who = f"the rank of process {status['ranks'][1]['pid']}" if mpi_name() == "MPICH" else "rank 1"
    assert f"training did not finish: {who} on {os.uname().nodename} was killed by SIGKILL" in stderr
    assert f"train {slow_recipe} -n 2 --set fault.recovery=none --run-dir {run_dir}" in stdout
    assert processes_of(run_dir) == []
    result = run_ddp_bp("train", slow_recipe, "--run-dir", run_dir, "--json")
    assert json.loads(result.stdout)["steps"] == 63


def test_a_run_from_the_checkpoint_of_another_one_is_told_to_begin_with_that_again(
    start_command, run_ddp_bp, slow_recipe: Path, tmp_path: Path
) -> None:
    options = ["--set", "fault.recovery=none", "--set", "checkpoint.every_steps=0"]
    first = run_ddp_bp("train", slow_recipe, "--run-dir", tmp_path / "first", *options, "--set", "train.max_steps=2")
    assert first.returncode == 0, first.stderr
    checkpoint, run_dir = tmp_path / "first" / "checkpoints" / "step-00000002", tmp_path / "run"
    process = start_command(ddp_bp("train", slow_recipe, "--run-dir", run_dir, *options, "--resume", checkpoint))
    status = wait_for_step(run_dir, 4)
    os.kill(status["ranks"][0]["pid"], signal.SIGKILL)
    stdout, _ = process.communicate(timeout=30)
    assert stdout.endswith(f"--run-dir {run_dir} --resume {checkpoint}\n")


def test_nothing_outlives_a_killed_launcher(start_command, slow_recipe: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir))
    wait_for_step(run_dir, 5)
    process.kill()
    wait_until(lambda: not processes_of(run_dir), "mpirun, workers and coordinator to end", 5)


@pytest.mark.parametrize(("name", "exit_code"), [("SIGTERM", 143), ("SIGUSR1", 75)])
def test_a_worker_told_to_end_ends_the_job_with_a_checkpoint(
    start_command, slow_recipe: Path, tmp_path: Path, name: str, exit_code: int
) -> None:
    run_dir = tmp_path / "run"
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir))
    status = wait_for_step(run_dir, 5)
    os.kill(status["ranks"][1]["pid"], signal.Signals[name])
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (exit_code, "")
    assert "stopped after step" in stdout


@pytest.mark.parametrize(("name", "exit_code"), [("SIGTERM", 143), ("SIGUSR1", 75)])
@pytest.mark.parametrize("whose", ["train", "own mpirun"])
def test_a_worker_told_to_end_while_it_loads_ends_the_job_after_a_step(
    start_command, slow_recipe: Path, tmp_path: Path, whose: str, name: str, exit_code: int
) -> None:
    run_dir = tmp_path / "run"
    options = [slow_recipe, "--run-dir", run_dir, "--set", "model.factory=job_models:slow_to_load"]
    if whose == "train":
        process = start_command(ddp_bp("train", *options, "-n", 2))
    else:
        process = start_command([*mpirun(2), *ddp_bp("worker", *options)])
    wait_until((tmp_path / "loading").exists, "rank 1 to load its model")
    for rank in ranks_of(run_dir):
        rank.send_signal(signal.Signals[name])
    (tmp_path / "loaded").touch()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == exit_code and "restart" not in stderr, stderr
    assert len(list((run_dir / "checkpoints").glob("step-*"))) == 1


@pytest.mark.ulfm
def test_a_rank_that_dies_before_all_have_found_each_other_keeps_nobody_waiting_for_it(
    start_command, slow_recipe: Path, tmp_path: Path
) -> None:
    """MPI's own start does not end for the others then."""
    run_dir = tmp_path / "run"
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir))
    wait_until(lambda: len(ranks_of(run_dir)) == 2, "two ranks")
    ranks_of(run_dir)[1].kill()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "restart 1 of 3: a rank has died before all had found each other; going on from step 0 in" in stderr


def test_a_job_that_has_no_checkpoint_within_its_grace_leaves_without(
    start_command, slow_recipe: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    options = ["--set", "model.options.sleep_seconds=4.0", "--set", "fault.grace_seconds=0.5"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, *options))
    wait_for_step(run_dir, 0)
    process.send_signal(signal.SIGUSR1)
    _, stderr = process.communicate(timeout=15)
    assert process.returncode == 75
    assert "SIGUSR1: no checkpoint within fault.grace_seconds = 0.5; leaving at once" in stderr
    assert "restart" not in stderr
    wait_until(lambda: not processes_of(run_dir), "every process to end", 5)


def test_the_last_checkpoint_is_tried_again_until_the_disk_takes_it(
    start_command, slow_recipe: Path, tmp_path: Path, undisturbed: dict
) -> None:
    """A disk that takes nothing: a file stands where checkpoints are to be written, until `train` has said so."""
    run_dir = tmp_path / "run"
    options = ["--run-dir", run_dir, "--set", "checkpoint.every_steps=0"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, *options))
    wait_for_step(run_dir, 1)
    folder = run_dir / "checkpoints"
    folder.rename(run_dir / "away")
    folder.touch()
    line = next(line for line in process.stderr if "the last checkpoint, of step 63, was not saved: " in line)
    assert "trying again for 60 s, in which you may make room" in line
    folder.unlink()
    (run_dir / "away").rename(folder)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert "not saved" not in stderr, "it is said once"
    summary = summary_of(run_dir)
    assert summary["weights_sha256"] == undisturbed["weights_sha256"]
    assert summary["checkpoint"].endswith("step-00000063")


def test_a_coordinator_that_does_not_answer_keeps_nobody_beyond_the_grace(
    start_command, slow_recipe: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    options = ["--set", "fault.grace_seconds=1", "--set", "train.epochs=1000"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, *options))
    wait_for_step(run_dir, 3)
    os.kill(read_address(run_dir).pid, signal.SIGSTOP)
    process.send_signal(signal.SIGUSR1)
    began = time.monotonic()
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 75, stderr
    assert time.monotonic() - began < 1 + 10
    assert "SIGUSR1: no checkpoint within fault.grace_seconds = 1; leaving at once" in stderr
    assert processes_of(run_dir) == []


def test_a_second_signal_ends_at_once(start_command, slow_recipe: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = ["--set", "model.options.sleep_seconds=4.0"]
    process = start_command(ddp_bp("train", slow_recipe, "-n", 2, "--run-dir", run_dir, *options))
    wait_for_step(run_dir, 0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=15)
    assert process.returncode == 130
    assert "ending at once" in stdout
    wait_until(lambda: not processes_of(run_dir), "every process to end", 10)


def test_silent_singletons_are_refused_once(start_command, slow_recipe: Path, tmp_path: Path) -> None:
    """A launcher of another MPI: it says 3 ranks, and each process sees a world of its own."""
    size, number = ("PMI_SIZE", "PMI_RANK") if mpi_name() == "Open MPI" else ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    processes = [
        start_command(
            ddp_bp("worker", slow_recipe, "--run-dir", tmp_path / f"run-{rank}"), **{size: "3", number: str(rank)}
        )
        for rank in range(3)
    ]
    errors = []
    for process in processes:
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 1
        errors.append(stderr)
    assert errors[1:] == ["", ""]
    for part in ("3 ranks were asked for", "sees a world of 1", "mpiexec is", f"mpi4py uses {mpi_name()}"):
        assert part in errors[0]
    assert not list(tmp_path.glob("run-*"))


def test_a_world_of_another_size_than_asked_for_is_refused(mpirun, slow_recipe: Path, tmp_path: Path) -> None:
    arguments = ["-m", "ddp_bp", "worker", slow_recipe, "--run-dir", tmp_path / "run", "--world-size", "3"]
    result = mpirun(2, arguments)
    assert result.returncode != 0
    assert result.stderr.startswith("ddp-bp: 3 ranks were asked for, but this process sees a world of 2")
    assert result.stderr.count("ddp-bp:") == 1


def csv_recipe(folder: Path, text: str, extra: str = "") -> Path:
    (folder / "data.csv").write_text(text)
    recipe = folder / "own.toml"
    recipe.write_text(f'[model]\nname = "mlp"\n[data]\npath = "data.csv"\n{extra}')
    return recipe


GOOD_CSV = "a,b,label\n" + "".join(f"{i},{i * i % 7},{i % 3}\n" for i in range(60))


def text_column(folder: Path) -> list:
    return ["train", csv_recipe(folder, GOOD_CSV.replace("5,4,", "5,red,"))]


def ragged_row(folder: Path) -> list:
    return ["train", csv_recipe(folder, GOOD_CSV.replace("5,4,2", "5,4,2,9"))]


def nan_in_data(folder: Path) -> list:
    x = np.ones((20, 3), np.float32)
    x[7, 2] = np.nan
    np.savez(folder / "data.npz", x=x, y=np.arange(20) % 2)
    recipe = csv_recipe(folder, "")
    recipe.write_text(recipe.read_text().replace("data.csv", "data.npz"))
    return ["train", recipe]


def labels_out_of_range(folder: Path) -> list:
    return ["train", csv_recipe(folder, GOOD_CSV, "num_classes = 2\n")]


def occupied_port(folder: Path) -> list:
    listener = socket.create_server(("127.0.0.1", 0))
    folder.joinpath("keep").touch()
    occupied_port.listener = listener  # type: ignore[attr-defined]
    return ["train", "digits", "--set", f"coordinator.http_port={listener.getsockname()[1]}"]


def foreign_folder(folder: Path) -> list:
    (folder / "run").mkdir()
    (folder / "run" / "thesis.txt").write_text("precious")
    return ["train", "digits"]


BAD_INPUT: dict[str, tuple[Callable[[Path], list], list[str]]] = {
    "unknown recipe": (lambda f: ["train", "digit"], ["unknown recipe", "did you mean 'digits'"]),
    "missing recipe file": (lambda f: ["train", f / "none.toml"], ["none.toml", "no such file"]),
    "misspelt key": (
        lambda f: ["train", "digits", "--set", "optimizer.lrr=1", "--set", "train.epochs=0"],
        ["optimizer.lrr", "did you mean 'lr'", "train.epochs", ">= 1", "got 0"],
    ),
    "wrong type": (
        lambda f: ["train", "digits", "--set", 'train.epochs="many"'],
        ["train.epochs", "a whole number", "'many'"],
    ),
    "unknown model option": (
        lambda f: ["train", "digits", "--set", "model.options.hiden=[3]"],
        ["model.options.hiden", "did you mean 'hidden'"],
    ),
    "missing data file": (
        lambda f: ["train", "digits", "--set", "data.path='no.csv'", "--set", "data.name='digits'"],
        ["exactly one of data.name and data.path"],
    ),
    "text column": (text_column, ["data.csv", "line 7", "'red'"]),
    "ragged row": (ragged_row, ["data.csv", "line 7", "4", "3"]),
    "nan in the data": (nan_in_data, ["data.npz", "row 7"]),
    "labels out of range": (labels_out_of_range, ["data.csv", "label", "2"]),
    "zero workers": (lambda f: ["train", "digits", "-n", "0"], ["-n", "0 is not in the range x>=1"]),
    "occupied port": (occupied_port, ["coordinator.http_port", "in use", "choose another"]),
    "a folder of something else": (foreign_folder, ["expected an empty folder", "no recipe.json"]),
    "more shards than samples": (
        lambda f: ["train", "digits", "--set", "train.shards=1000000000"],
        ["train.shards: expected at most train.batch_size = ", "got 1000000000"],
    ),
    "missing checkpoint": (lambda f: ["train", "digits", "--resume", f / "nowhere"], ["nowhere"]),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_error_with_exit_code_2_and_nothing_is_written(run_ddp_bp, tmp_path: Path, name: str) -> None:
    make, parts = BAD_INPUT[name]
    arguments = make(tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))
    result = run_ddp_bp(*arguments, "--run-dir", tmp_path / "run", cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("factory", "part"),
    [
        ("job_models:too_few_outputs", "gives 9 outputs, but the data has 10 classes"),
        ("job_models:no_module", "expected a ddp_bp.nn.Module from it, got str"),
        ("job_models:missing", "has no function 'missing'"),
        ("job_models:mixed", "all parameters of a model take one dtype"),
        ("no_such_module:build", "No module named 'no_such_module'"),
    ],
)
def test_a_model_that_does_not_fit_is_found_before_anything_starts(
    run_ddp_bp, slow_recipe: Path, tmp_path: Path, factory: str, part: str
) -> None:
    result = run_ddp_bp("train", slow_recipe, "--set", f"model.factory={factory}", "--run-dir", tmp_path / "run")
    assert result.returncode == 2
    assert part in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_workers_train_the_model_that_was_checked(run_ddp_bp, slow_recipe: Path, tmp_path: Path) -> None:
    working = tmp_path / "working"
    working.mkdir()
    (working / "job_models.py").write_text("raise ImportError('the code of the working folder')")
    options = ("--set", "train.max_steps=2", "--set", "model.options.sleep_seconds=0.0")
    result = run_ddp_bp("train", slow_recipe, *options, "--run-dir", tmp_path / "run", cwd=working)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs of digits with several checkpoints."""
    from support import run_to_end

    run_dir = tmp_path_factory.mktemp("finished") / "run"
    options = ["--set", "train.epochs=2", "--set", "checkpoint.every_steps=5"]
    result = run_to_end(ddp_bp("train", "digits", *options, "--run-dir", run_dir), 60)
    assert result.returncode == 0, result.stderr
    return run_dir


def test_a_run_directory_of_another_recipe_is_refused_with_the_keys_named(run_ddp_bp, finished_run: Path) -> None:
    result = run_ddp_bp("train", "digits", "--set", "optimizer.lr=0.5", "--run-dir", finished_run)
    assert result.returncode == 2
    assert "optimizer.lr: 0.002 -> 0.5" in result.stderr


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_refused_by_name_and_passed_over_by_auto(
    run_ddp_bp, finished_run: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run, run_dir)
    newest = run_dir / "checkpoints" / "step-00000046"
    flip_a_bit(newest / "model.safetensors")
    named = run_ddp_bp("train", "digits", "--set", "train.epochs=3", "--run-dir", run_dir, "--resume", newest)
    assert named.returncode == 2
    assert "model.safetensors" in named.stderr
    verified = run_ddp_bp("checkpoint", "verify", run_dir, "--json")
    assert verified.returncode == 1
    problems = {Path(row["path"]).name: row["problems"] for row in json.loads(verified.stdout)}
    assert problems["step-00000046"]
    # Which steps have a checkpoint depends on how fast the disk is: one that is due while another is sent is put off.
    valid = max(name for name, found in problems.items() if not found)
    resumed = run_ddp_bp("train", "digits", "--set", "train.epochs=3", "--run-dir", run_dir, "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr.count("warning") == 1
    assert "step-00000046" in resumed.stderr
    summary = json.loads(resumed.stdout)
    assert (summary["resumed_from_step"], summary["steps"]) == (int(valid.removeprefix("step-")), 69)


def test_resume_never_does_not_overwrite_a_run(run_ddp_bp, finished_run: Path) -> None:
    result = run_ddp_bp("train", "digits", "--set", "train.epochs=3", "--run-dir", finished_run, "--resume", "never")
    assert result.returncode == 2
    assert "holds checkpoints of an earlier start" in result.stderr


def test_an_evaluation_that_is_no_number_is_warned_of_once_and_has_no_accuracy(
    run_ddp_bp, slow_recipe: Path, tmp_path: Path
) -> None:
    options = ["--set", "model.factory=job_models:not_a_number_in_evaluation", "--set", "train.max_steps=3"]
    result = run_ddp_bp("train", slow_recipe, "-n", "2", *options, "--run-dir", tmp_path / "run", "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("warning: the evaluation loss after step 3 is nan") == 1
    summary = json.loads(result.stdout)
    assert summary["eval_loss"] is None and summary["eval_accuracy"] is None
