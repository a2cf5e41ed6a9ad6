"""A real Slurm of two nodes on this machine, with its ports, key, state and logs in a folder of the test's."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import psutil
from prometheus import free_port
from support import child_environment, run_to_end, wait_until

NODES = ("d1", "d2")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "shellcheck")
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL")

# `high` takes nodes from `low`, whose jobs then have GraceTime seconds. A job that is queued again waits until its old
# credentials are no longer valid, unless it is told otherwise; cred_expire is as short as it may be.
_CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}/tmp-%n
TaskProlog={folder}/task-prolog
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=10000,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MailProg=/bin/true
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Why there can be no Slurm here, or None."""
    if os.geteuid() != 0:
        return "names for nodes need root"
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    return f"needs {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge shellcheck)" if missing else None


def why_no_pmix() -> str | None:
    """Why srun cannot start ranks of MPI here, or None. Debian's Slurm wants the library's name for developers."""
    found = any(Path("/usr").glob("lib/*/pmix2/lib/libpmix.so")) and any(Path("/usr").glob("lib/*/slurm*/mpi_pmix.so"))
    return None if found else "needs PMIx for srun --mpi=pmix (Debian: libpmix-dev)"


class Slurm:
    """A cluster that runs within a `with` statement, with all its jobs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = folder / "slurm.conf"
        # The interpreter's ddp-bp comes first, as after activating its environment.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = {**child_environment(), "SLURM_CONF": str(self._config), "PATH": path}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Slurm:
        self._configure()
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._end()

    def run(self, *command: object) -> str:
        """What a command of Slurm's prints."""
        result = run_to_end([str(word) for word in command], 30, cwd=self._folder, **self._environment)
        assert result.returncode == 0, f"{command}: {result.stderr}"
        return result.stdout

    def submit(self, *arguments: object) -> int:
        """`sbatch ...`: the job's number."""
        return int(self.run("sbatch", "--parsable", *arguments))

    def job(self, number: int | str) -> Mapping[str, str]:
        """What is known of a job, or of one task of an array: `JobState`, `Restarts`, `ExitCode`, ..."""
        line = self.run("scontrol", "--oneliner", "show", "job", number)
        return dict(word.split("=", 1) for word in line.split() if "=" in word)

    def wait_for_restart(self, number: int | str, num_restarts: int) -> None:
        """Until a job was queued again so many times, for whose next start Slurm then need not wait long."""

        def queued_again() -> bool:
            job = self.job(number)
            # Before that, Slurm has yet to set when it may start.
            is_settled = job["JobState"] != "PENDING" or job["Reason"] == "BeginTime"
            return int(job["Restarts"]) == num_restarts and is_settled

        wait_until(queued_again, f"restart {num_restarts} of job {number}")
        # Credentials that are newer than the end of the last start will do, and Slurm counts in seconds. A job that has
        # started in the meantime cannot be changed any more.
        run_to_end(["scontrol", "update", f"JobId={number}", "StartTime=now+2"], 30, **self._environment)

    def wait_for_end(self, number: int | str, timeout_seconds: float = 60) -> Mapping[str, str]:
        """What is known of a job once it has ended and is not queued again."""

        def ended() -> Mapping[str, str] | None:
            job = self.job(number)
            return job if job["JobState"] in _ENDED else None

        job: Mapping[str, str] = wait_until(ended, f"the end of job {number}", timeout_seconds)
        return job

    def _configure(self) -> None:
        ports = [free_port() for _ in range(len(NODES) + 1)]
        host = socket.gethostname().split(".")[0]
        nodes = [
            f"NodeName={name} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=500"
            for name, port in zip(NODES, ports[1:], strict=True)
        ]
        for name in ("state", *(f"{kind}-{node}" for kind in ("spool", "tmp") for node in NODES)):
            (self._folder / name).mkdir()
        text = _CONFIG.format(
            host=host, controller_port=ports[0], folder=self._folder, user=getpass.getuser(), nodes="\n".join(nodes)
        )
        self._config.write_text(text)
        # As on machines of their own, each node has temporary files of its own; daemons of MPI clear theirs away.
        prolog = self._folder / "task-prolog"
        prolog.write_text(f'#!/bin/sh\necho "export TMPDIR={self._folder}/tmp-$SLURMD_NODENAME"\n')
        prolog.chmod(0o755)
        key = self._folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)

    def _start(self) -> None:
        files = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={self._folder}/munge.{ending}" for option, ending in files.items()]
        # --force: the folders of a test need not be as private as those of a system.
        self._spawn("munged", "--foreground", "--force", *options)
        wait_until((self._folder / "munge.socket").exists, "munged", 10)
        self._spawn("slurmctld", "-D", "-i")
        # As on a cluster, a node has a name of its own, by which jobs reach it, and shares no memory with others.
        hosts = self._folder / "hosts"
        hosts.write_text(Path("/etc/hosts").read_text() + f"127.0.0.1 {' '.join(NODES)}\n")
        apart = f'hostname $0 && mount --bind {hosts} /etc/hosts && mount -t tmpfs tmpfs /dev/shm && exec "$@"'
        for node in NODES:
            self._spawn("unshare", "--mount", "--uts", "sh", "-c", apart, node, "slurmd", "-D", "-N", node)
        wait_until(lambda: self._has_ended() or self._num_idle_nodes() == len(NODES), "two idle nodes", 30)
        assert not self._has_ended(), "".join(log.read_text() for log in self._folder.glob("[1-9]-*.log"))

    def _spawn(self, *command: str) -> None:
        with (self._folder / f"{len(self._daemons)}-{command[0]}.log").open("wb") as log:
            options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
            self._daemons.append(subprocess.Popen(command, env=self._environment, **options))

    def _has_ended(self) -> bool:
        return any(daemon.poll() is not None for daemon in self._daemons)

    def _num_idle_nodes(self) -> int:
        said = run_to_end(["sinfo", "--noheader", "--Node", "--partition=low", "--format=%T"], 30, **self._environment)
        return said.stdout.split().count("idle")

    def _end(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
        # Jobs and their steps outlive the daemons that started them, so that these can be renewed.
        mark = f"SLURM_CONF={self._config}".encode()
        left = [process for process in psutil.process_iter() if mark in variables_of(process)]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)


def variables_of(process: psutil.Process) -> list[bytes]:
    """The environment that a process was started with; empty if it is gone."""
    try:
        return Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
