"""A rank must not outlive its launcher: a thread waits for the end of the process that started this one.

It acts also while the rank waits in an MPI call that will never return. Knows not what the rank does.
"""

from __future__ import annotations

import os
import select
import shutil
import threading
from pathlib import Path

EXIT_CODE = 1


def end_with_launcher(session_folder: Path | None) -> None:
    """From now on, end this process at once when the one that started it has ended.

    `session_folder`: where MPI on this machine keeps the files of this one job; removed then, since the launcher, whose
    task that is, no longer can.
    """
    parent = os.getppid()
    try:
        launcher = os.pidfd_open(parent)
    except OSError:
        # It has ended already, or the kernel is older than 5.3; then MPI itself must notice.
        return
    threading.Thread(target=_wait, args=(launcher, session_folder), name="lifeline", daemon=True).start()


def _wait(launcher: int, session_folder: Path | None) -> None:
    poll = select.poll()
    poll.register(launcher, select.POLLIN)
    poll.poll()
    if session_folder is not None:
        shutil.rmtree(session_folder, ignore_errors=True)
    # No clean-up of Python or MPI: the main thread may be anywhere, and MPI would wait for others.
    os._exit(EXIT_CODE)
