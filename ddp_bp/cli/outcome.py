"""How ranks tell `ddp-bp train` that they have ended in good order, and how a job that did not is explained.

Ranks print a line that is for the process that started mpirun alone: it comes from any host, and needs neither mpirun's
exit code, which says little, nor the coordinator, which an error may have kept a rank from reaching. A rank that was
killed cannot print it. Knows not what is done about it.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from typing import Any

from ddp_bp.wire.phases import SPARE, WAITING

_MARK = "\x1fddp-bp outcome "
_STDERR = 2

# What launchers say of a process that died: Open MPI, Hydra, srun; with each run of white space as one space.
_WHERE = r"(?P<host>\S+)"
_DEATHS = (
    re.compile(rf"process rank (?P<rank>\d+) with PID (?P<pid>\d+) on node {_WHERE} exited on signal (?P<signal>\d+)"),
    re.compile(rf"PID (?P<pid>\d+) RUNNING AT {_WHERE} = EXIT CODE: (?P<signal>\d+)"),
    re.compile(rf"error: {_WHERE}: task (?P<rank>\d+): (?P<what>Killed|Terminated|Segmentation fault|Out Of Memory)"),
)
_NO_DAEMON = re.compile(r"daemon failed to report back .*?Remote host: (?P<host>\S+)")
_LOST_HOST = re.compile("lost communication with a remote daemon")


def report_outcome(exit_code: int) -> None:
    """Say that all ranks know of the end of the job, and what it ends with."""
    # One system call, so that no other rank's line comes in between.
    os.write(_STDERR, f"{_MARK}{exit_code}\n".encode())


def read_outcome(line: str) -> tuple[str, int | None]:
    """What of a line of the workers is for people, and the exit code if it is that of a rank in good order."""
    text, mark, code = line.partition(_MARK)
    return (text, int(code)) if mark and code.isdigit() else (line, None)


def why_it_ended(lines: Sequence[str], mpirun_exit_code: int | None) -> str:
    """Why a job ended without a word of its ranks, as far as the last lines of the launcher tell.

    `mpirun_exit_code`: None if all ranks have ended, and mpirun has not.
    """
    said = re.sub(r"\s+", " ", "\n".join(lines))
    for pattern in _DEATHS:
        if found := pattern.search(said):
            return _died(**found.groupdict())
    if found := _NO_DAEMON.search(said):
        return f"mpirun could not start ranks on {found['host']}, or lost it"
    if _LOST_HOST.search(said):
        return "mpirun lost a host"
    if mpirun_exit_code is None:
        return "ranks were lost, and mpirun did not end with the last of them"
    if mpirun_exit_code < 0:
        return f"mpirun was killed by {_signal_name(-mpirun_exit_code)}"
    return f"ranks were lost, and mpirun ended with exit code {mpirun_exit_code}"


def silent_host(status: dict[str, Any] | None, silence_seconds: float) -> str | None:
    """Which host nothing is heard from any more, given what /api/status says of a job; None: all are heard.

    MPI does not notice a link that goes dark, nor can anybody here end the ranks behind it. So if no rank of a host has
    been heard of for half of `silence_seconds` (0: never), and all others wait, the job is started again without it. A
    rank alone among others of its host is left to the coordinator, and so are spares alone, which nobody waits for.
    """
    ranks = (status or {}).get("ranks", [])
    limit_seconds = silence_seconds / 2
    silent = [row for row in ranks if row["suspected"] == "silent" and row["suspected_seconds"] > limit_seconds]
    awake = [row["doing"] for row in ranks if row not in silent]
    if not silence_seconds or not silent or any(doing not in (WAITING, SPARE) for doing in awake):
        return None
    for host in {row["hostname"] for row in silent}:
        gone = [row for row in silent if row["hostname"] == host]
        is_whole_host = len(gone) == sum(row["hostname"] == host for row in ranks)
        if is_whole_host and any(row["doing"] != SPARE for row in gone):
            who = ", ".join(str(row["rank"]) for row in gone)
            return f"nothing was heard of rank {who} on {host} for {limit_seconds:g} s"
    return None


def _died(host: str, rank: str | None = None, pid: str | None = None, **how: str) -> str:
    who = f"rank {rank}" if rank is not None else f"the rank of process {pid}"
    what = how.get("what") or _signal_name(int(how["signal"]))
    return f"{who} on {host} was killed by {what}" if what.startswith("SIG") else f"{who} on {host} ended: {what}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
