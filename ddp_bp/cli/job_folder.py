"""What a job leaves on this machine, and how it is cleared away whoever was killed: exactly its own, nobody else's.

A job has a temporary folder, which its processes here have in their environment. MPI keeps its sockets and files in it,
and whoever notices the end of the job finds by it what is left: the process that made it, else the coordinator, else
the next job. Knows not what the processes do.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ddp_bp.cli.environment import job_marker

_PREFIX = "ddp-bp-job-"


@contextlib.contextmanager
def job_folder() -> Iterator[Path]:
    """A temporary folder for one job, which is gone afterwards, with all processes that have it as theirs.

    Those of jobs that were killed as a whole are removed as well.
    """
    _clear_dead_jobs()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Held until this process ends, however it does.
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield folder
    finally:
        clear_job(folder)
        os.close(lock)


def clear_job(folder: Path, grace_seconds: float = 0.0) -> None:
    """Kill what still runs of the job of this folder, all but this process, and remove the folder.

    `grace_seconds`: how long processes may take to end by themselves.
    """
    end_processes(folder, grace_seconds)
    shutil.rmtree(folder, ignore_errors=True)


def end_processes(folder: Path, grace_seconds: float = 0.0) -> None:
    """Kill what runs on this machine of the job of this folder, all but this process, after a time to end by itself."""
    deadline = time.monotonic() + grace_seconds
    while processes := list(_processes_of(folder)):
        if time.monotonic() >= deadline:
            for pid in processes:
                # Gone by itself, or another user's, for instance mpirun started by a set-uid program.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() >= deadline + 1.0:
                break
        time.sleep(0.02)


def _clear_dead_jobs() -> None:
    """Remove the folders of which nobody is left, neither the process that made it nor one of the job's."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Another user's, or gone meanwhile, or locked.
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                # One that was made this moment is not locked yet, and empty.
                if any(folder.iterdir()) and not any(_processes_of(folder)):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _processes_of(folder: Path) -> Iterator[int]:
    """Processes on this machine, but for this one, that were started with the folder as their job's."""
    marker = job_marker(folder)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # A process that has ended meanwhile, or that is not ours to look at. That of a zombie is empty.
        with contextlib.suppress(OSError):
            if marker in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)
