"""Running a program of ours on other hosts, as the launcher would start its own there. Knows not what it does."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ddp_bp.cli.environment import passed_on, remote_shell

CONNECT_SECONDS = 10
_MOST_AT_ONCE = 64


@dataclass(frozen=True)
class Said:
    """What a program on another host gave. `exit_code`: None if it had not ended by the deadline."""

    exit_code: int | None
    stdout: str
    stderr: str

    @property
    def last_error(self) -> str:
        """The last line of stderr that says something."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else "nothing"


def run_on_hosts(
    hosts: Sequence[str],
    command: Sequence[str],
    deadline_seconds: float,
    connect_seconds: int = CONNECT_SECONDS,
    *,
    in_slurm: bool,
    **variables: str,
) -> dict[str, Said]:
    """Run `command` on all hosts at once, with `variables` and what ranks there get of this process' environment.

    in_slurm: through `srun` in the allocation, else through ssh, or what Open MPI is told to use instead.
    """
    settings = [f"{name}={value}" for name, value in {**passed_on(), **variables}.items()]

    def run(host: str) -> Said:
        line = _reaching(host, ["env", *settings, *command], connect_seconds, in_slurm=in_slurm)
        try:
            done = subprocess.run(
                line, stdin=subprocess.DEVNULL, capture_output=True, timeout=deadline_seconds, check=False
            )
        except subprocess.TimeoutExpired as error:
            return Said(None, _text(error.stdout), _text(error.stderr))
        except OSError as error:
            return Said(127, "", f"{line[0]}: {error.strerror}")
        return Said(done.returncode, _text(done.stdout), _text(done.stderr))

    with ThreadPoolExecutor(min(len(hosts), _MOST_AT_ONCE)) as pool:
        return dict(zip(hosts, pool.map(run, hosts), strict=True))


def _reaching(host: str, command: list[str], connect_seconds: int, *, in_slurm: bool) -> list[str]:
    if in_slurm:
        return ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={host}", *command]
    shell = remote_shell()
    if Path(shell[0]).name == "ssh":
        # Nobody is there to type a password, neither now nor when mpirun starts.
        shell += ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={connect_seconds}"]
    return [*shell, host, shlex.join(command)]


def _text(output: bytes | None) -> str:
    return (output or b"").decode(errors="replace")
