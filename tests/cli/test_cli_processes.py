"""The mpirun line for each MPI, and processes that end when they are told to or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ddp_bp.cli import processes
from ddp_bp.cli.processes import CoordinatorProcess, end_process_group, mpirun_command, start_coordinator, start_mpirun
from ddp_bp.errors import InputError, LaunchError
from ddp_bp.recipes import load_recipe
from ddp_bp.worker.rundir import RunDirectory

VERSIONS = {
    "Open MPI 5": "mpirun (Open MPI) 5.0.7\n\nReport bugs to https://www.open-mpi.org/community/help/\n",
    "Open MPI 4": "mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/\n",
    "Open MPI 3": "mpirun (OpenRTE) 3.1.6\n",
    "MPICH": "HYDRA build details:\n    Version:                                 4.0.2\n",
}
WORKER = ["-m", "ddp_bp", "worker", "digits"]
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts an mpirun of a given kind on the PATH or beside the interpreter. The machine has 4 cores and no other."""
    for folder in ("path", "bin"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    def put(kind: str, folder: str = "path", name: str = "mpirun") -> Path:
        script = tmp_path / folder / name
        script.write_text(f"#!/bin/sh\n[ \"$1\" = --version ] || exit 9\n/bin/cat <<'END'\n{VERSIONS[kind]}END\n")
        script.chmod(0o755)
        return script

    return put


@pytest.mark.parametrize("kind", ["Open MPI 5", "Open MPI 4", "Open MPI 3"])
@pytest.mark.parametrize(
    ("num_workers", "options"),
    [(4, []), (5, ["--mca", "mpi_yield_when_idle", "true"])],
)
def test_open_mpi_is_told_not_to_bind_and_to_yield_where_ranks_share_cores(
    install: Install, kind: str, num_workers: int, options: list[str]
) -> None:
    mpirun = install(kind)
    assert mpirun_command(num_workers, ["worker", "digits"]) == [
        str(mpirun), "--oversubscribe", "--bind-to", "none", *options, "-n", str(num_workers), sys.executable, *WORKER
    ]  # fmt: skip


def test_root_is_allowed_only_where_we_are_root(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("Open MPI 5")
    assert "--allow-run-as-root" not in mpirun_command(1, [])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "--allow-run-as-root" in mpirun_command(1, [])


@pytest.mark.parametrize("num_workers", [1, 9])
def test_hydra_has_no_such_options(install: Install, monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    mpirun = install("MPICH")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert mpirun_command(num_workers, ["worker", "digits"]) == [
        str(mpirun), "-n", str(num_workers), sys.executable, *WORKER
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Open MPI 5", ["--oversubscribe", "--bind-to", "none", "-x", "OPENBLAS_CORETYPE=SkylakeX"]),
        ("Open MPI 4", ["--oversubscribe", "--bind-to", "none", "-x", "OPENBLAS_CORETYPE=SkylakeX"]),
        ("MPICH", ["-genv", "OPENBLAS_CORETYPE", "SkylakeX"]),
    ],
)
def test_every_host_is_told_which_kernels_to_take(install: Install, kind: str, options: list[str]) -> None:
    mpirun = install(kind)
    command = mpirun_command(2, ["worker", "digits"], "SkylakeX")
    assert command == [str(mpirun), *options, "-n", "2", sys.executable, *WORKER]


def test_the_mpirun_beside_the_interpreter_comes_first_and_mpiexec_last(install: Install) -> None:
    with pytest.raises(LaunchError, match=r"no mpirun beside .*/bin/python nor on the PATH; install one"):
        mpirun_command(2, [])
    mpiexec = install("MPICH", name="mpiexec")
    assert mpirun_command(2, [])[0] == str(mpiexec)
    mpirun = install("MPICH")
    assert mpirun_command(2, [])[0] == str(mpirun)
    beside = install("Open MPI 5", folder="bin")
    assert mpirun_command(2, [])[0] == str(beside)


def shell(script: str) -> subprocess.Popen[bytes]:
    """A started script that has said that it is ready."""
    process = start_mpirun(["/bin/sh", "-c", script])
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()


@pytest.mark.parametrize(
    ("script", "number"),
    [
        ("echo ready; sleep 60 & wait", signal.SIGTERM),
        ("trap '' TERM; echo ready; sleep 60 & wait; sleep 60", signal.SIGKILL),
    ],
)
def test_a_group_is_asked_to_end_and_then_made_to(script: str, number: signal.Signals) -> None:
    process = shell(script)
    end_process_group(process, grace_seconds=0.3)
    assert process.returncode == -number
    # The pipe is at its end only when the children that inherited it have gone too.
    assert process.stdout is not None
    assert process.stdout.read() == b""
    end_process_group(process)
    close(process)


def test_mpirun_gets_blas_with_one_thread_and_no_terminal() -> None:
    process = start_mpirun(["/bin/sh", "-c", 'read line && echo "a line"; echo "$OPENBLAS_NUM_THREADS"; echo no >&2'])
    stdout, stderr = process.communicate(timeout=10)
    assert (stdout, stderr) == (b"1\n", b"no\n")


def test_a_coordinator_that_does_not_end_is_killed_and_its_lifeline_let_go_once() -> None:
    reading, writing = os.pipe()
    process = subprocess.Popen(["/bin/sleep", "60"])
    coordinator = CoordinatorProcess(process, writing)
    assert coordinator.wait(0.05) == -signal.SIGKILL
    assert os.read(reading, 1) == b"", "the other end of the pipe is closed"
    os.close(reading)
    other = os.open(os.devnull, os.O_RDONLY)  # it may have the same number
    coordinator.release()
    os.fstat(other)
    os.close(other)


def test_a_coordinator_listens_until_its_lifeline_is_let_go(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run").create(load_recipe("digits")[0], {})
    coordinator = start_coordinator("digits", (), 1, tmp_path / "run", 5)
    assert (tmp_path / "run" / "coordinator.json").exists()
    coordinator.release()
    coordinator.wait(20)
    assert not (tmp_path / "run" / "coordinator.json").exists()


def test_a_coordinator_that_cannot_start_says_why_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="the coordinator did not start; see above"):
        start_coordinator("digits", ("coordinator.host=nowhere.invalid",), 1, tmp_path, 5)
    assert "nowhere.invalid" in capfd.readouterr().err


def test_a_coordinator_that_ends_before_it_listens_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.sys, "executable", "/bin/false")
    with pytest.raises(LaunchError, match="ended with exit code 1 before it listened"):
        start_coordinator("digits", (), 1, tmp_path, 5)
