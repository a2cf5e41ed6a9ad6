"""Processes that a command starts: the coordinator, mpirun with the workers, others. None of them outlives us."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddp_bp.cli.environment import child_environment, job_environment
from ddp_bp.cli.supervise import History
from ddp_bp.errors import DeadlineError, InputError, LaunchError

COORDINATOR_START_SECONDS = 60.0
KILL_SECONDS = 5.0
"""How long a process that was killed may take to be gone."""
_PR_SET_PDEATHSIG = 1
_FIRST_SIGNAL_CODE = 128


@dataclass
class CoordinatorProcess:
    """A coordinator that ends when `lifeline`, the writing end of a pipe that only we hold, is closed.

    `through_shell`: `process` is not the coordinator itself but a shell, perhaps on its way to another machine.
    """

    process: subprocess.Popen[bytes]
    lifeline: int
    through_shell: bool = False

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        code = self.process.poll()
        return None if code is None else self._exit_code(code)

    def wait(self, timeout_seconds: float) -> int:
        """Its exit code; it is killed if it has not ended by then."""
        try:
            return self._exit_code(self.process.wait(timeout_seconds))
        except subprocess.TimeoutExpired:
            self.process.kill()
            try:
                return self.process.wait(KILL_SECONDS)
            except subprocess.TimeoutExpired:
                # It waits for a disk that does not answer, and ends with that.
                return -signal.SIGKILL
        finally:
            self.release()

    def _exit_code(self, code: int) -> int:
        # Shells give such a code for a command that was killed, and ssh also for a connection that was lost.
        return -signal.SIGKILL if self.through_shell and code >= _FIRST_SIGNAL_CODE else code

    def release(self) -> None:
        """Let go of the lifeline, so that the coordinator finishes writing and ends."""
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1


def start_coordinator(
    recipe: str,
    overrides: tuple[str, ...],
    world_size: int,
    run_dir: Path,
    total_steps: int,
    *,
    history: History | None = None,
    most_workers: int | None = None,
    num_spares: int = 0,
    job_folder: Path | None = None,
    takes_over: bool = False,
    shell: Sequence[str] = (),
) -> CoordinatorProcess:
    """Start the coordinator of a run whose directory exists, and wait until it listens.

    `history`: of the starts before. `num_spares`: how many ranks there are besides, to wait. `most_workers`: how many
    ranks this process can start, if it goes on with another number of them when asked. `job_folder`: the temporary
    folder of the job, which the coordinator clears away if this process can no longer do it. `takes_over`: whether it
    takes the place of one that was killed.
    `shell`: a command that runs its last argument, a shell command, where the coordinator is to be, such as `ssh HOST`,
    with the same run directory, and with its own input as a pipe. By default the coordinator is started here.

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
    history = history or History()
    command += ["--total-steps", str(total_steps)]
    command += ["--num-restarts", str(history.num_restarts), "--num-resizes", str(history.num_resizes)]
    command += ["--most-workers", str(most_workers)] if most_workers is not None else []
    command += ["--num-spares", str(num_spares)]
    command += ["--takes-over"] if takes_over else []
    command += [argument for override in overrides for argument in ("--set", override)]
    if shell:
        # No other descriptor of ours gets there than the input, and what a job leaves here is not there.
        command = [*shell, shlex.join([*command, "--parent-fd", "0"])]
    else:
        command += ["--parent-fd", str(reading)]
        command += ["--job-folder", str(job_folder)] if job_folder is not None else []
    process = subprocess.Popen(
        command,
        env=child_environment(),
        pass_fds=() if shell else (reading,),
        stdin=reading if shell else subprocess.DEVNULL,
        # Its own session, so that Ctrl-C reaches us alone and we decide what it means.
        start_new_session=True,
    )
    os.close(reading)
    started = CoordinatorProcess(process, writing, through_shell=bool(shell))
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


def start_mpirun(
    command: list[str], job_folder: Path, *, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    """Start mpirun in a session of its own, by default with its output on pipes; it is told to end if we die.

    `job_folder`: the temporary folder of mpirun and of the ranks on this machine.
    """
    return _start_in_session(command, job_environment(job_folder), stdout, stderr)


def start_logged(command: Sequence[str], environment: dict[str, str], log: int) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own; it is told to end if we die.

    `log`: the descriptor that all its output goes to.
    """
    return _start_in_session(command, environment, log, log)


def _start_in_session(
    command: Sequence[str], environment: dict[str, str], stdout: int, stderr: int
) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None)

    def end_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    try:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
    except OSError as error:
        raise LaunchError(f"{command[0]} could not be started: {error.strerror}") from error


def end_process_group(process: subprocess.Popen[bytes], grace_seconds: float = 3.0) -> None:
    """End a process started in its own session, and what it started: SIGTERM, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_seconds)
