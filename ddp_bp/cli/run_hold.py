"""Who starts ranks in a run directory: one process, from before the first start of a job until after the last.

Between two starts there is no coordinator. So it is this process that keeps other jobs away then, and to which word can
be left that the job is to stop: in the file that it holds a lock on, and looks into all the time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ddp_bp.errors import InputError
from ddp_bp.worker.rundir import LAUNCHER_FILE

BY_USER = "user"
"""Among what a job was asked to stop by: `ddp-bp stop`; the others are names of signals."""
_LOOKED_AT_SECONDS = 0.5
"""Somebody who only looks whether the directory is held has a hold on it, too, for a moment."""
_POLL_SECONDS = 0.02


class RunHold:
    """A run directory that is held."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def note_stop(self, asked: list[str]) -> None:
        """Add to what was `asked` for the stop that somebody has left word of, once each time that it is left."""
        with contextlib.suppress(OSError):
            if self._file.read_bytes():
                asked.append(BY_USER)
                os.truncate(self._file, 0)


@contextlib.contextmanager
def hold_run(run_dir: Path) -> Iterator[RunHold]:
    """Be the one who starts ranks there. The folder is made; word that nobody has read is forgotten.

    Raises:
        InputError: somebody else is, or the disk refuses.
    """
    file = run_dir / LAUNCHER_FILE
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InputError(
            f"run directory {run_dir} cannot be used: {error.filename}: {error.strerror}; give another --run-dir"
        ) from error
    try:
        deadline = time.monotonic() + _LOOKED_AT_SECONDS
        while not _locks(lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise InputError(_in_use(run_dir))
            time.sleep(_POLL_SECONDS)
        os.ftruncate(lock, 0)
        yield RunHold(file)
    finally:
        # The file stays: another process may have opened it already, to have it next.
        os.close(lock)


def is_held(run_dir: Path) -> bool:
    """Whether a process starts ranks there."""
    try:
        lock = os.open(run_dir / LAUNCHER_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _locks(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def check_not_held(run_dir: Path) -> None:
    """Raise InputError if a process starts ranks there."""
    if is_held(run_dir):
        raise InputError(_in_use(run_dir))


def ask_to_stop(run_dir: Path) -> bool:
    """Leave word with the process that starts ranks there that the job is to stop. False: there is none.

    Raises InputError if the file cannot be written.
    """
    if not is_held(run_dir):
        return False
    try:
        (run_dir / LAUNCHER_FILE).write_text("stop\n", encoding="ascii")
    except OSError as error:
        raise InputError(f"{error.filename} cannot be written: {error.strerror}; is {run_dir} yours?") from error
    return True


def _locks(lock: int, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _in_use(run_dir: Path) -> str:
    return f"run directory {run_dir}: a job is running in it; see `ddp-bp status {run_dir}`, or give another --run-dir"
