"""A name for a process that no other one ever has, so that what is done to it meets nobody else.

The number of a process is used again when it has ended. Its name here is made of the machine's start, the namespace
that numbers it, and the moment at which it began. Linux; elsewhere a process has no such name.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Literal

_START_TIME = 19
"""The place of a process's start in /proc/PID/stat, counted from what follows its name in parentheses."""


def process_name(pid: int) -> str:
    """The name of the process that has this number now; empty if there is none, or it cannot be told."""
    try:
        if str(Path("/proc/self").readlink()) != str(os.getpid()):
            # That of another namespace, as in a container which has its host's: the number is another process's there.
            return ""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return f"{boot} {namespace} {pid} {fields[_START_TIME]}"


def is_same_machine(name: str, other: str) -> bool:
    """Whether both processes run where they can see each other."""
    return bool(name) and name.split()[:2] == other.split()[:2]


def kill_process(pid: int, name: str) -> Literal["killed", "gone", "elsewhere", "not allowed"]:
    """Kill the process of this name with SIGKILL, and nobody else; what came of it.

    "elsewhere": it runs on another machine, or where processes are numbered otherwise, or its name is not known.
    """
    if not is_same_machine(name, process_name(os.getpid())):
        return "elsewhere"
    try:
        # From now on the number means this process, or none.
        descriptor = os.pidfd_open(pid)
    except OSError:
        return "gone"
    try:
        if process_name(pid) != name:
            return "gone"
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return "gone"
    except PermissionError:
        return "not allowed"
    finally:
        os.close(descriptor)
    return "killed"
