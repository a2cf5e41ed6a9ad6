"""What is started at each start of a job, and the line that starts its ranks. Starts nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ddp_bp.cli.hosts import open_mpi_hostfile
from ddp_bp.cli.launcher import Launcher, mpirun_command
from ddp_bp.cli.network import Interface
from ddp_bp.cli.placement import Placement, launcher_options


@dataclass(frozen=True)
class JobStart:
    """What is started, the same each time but for the checkpoint that it goes on from.

    survives: whether the other ranks are to go on when one dies, where MPI offers that; num_spares: how many others are
    to wait then.
    more_options: of mpirun. placement: on which hosts; interfaces, yields: see `launcher_options`.
    grace_seconds: how long a checkpoint may take after a signal that announces an end by force.
    silence_seconds: after how long a rank that is not heard of counts as gone; 0: never.
    most_workers: how many ranks can be started, if somebody asks for another number of them.
    coordinator_shell: what runs the coordinator elsewhere, such as `ssh HOST`.
    """

    recipe: str
    overrides: tuple[str, ...]
    num_workers: int
    binds: bool
    run_dir: Path
    total_steps: int
    grace_seconds: float
    silence_seconds: float
    launcher: Launcher
    kernels: str | None
    placement: Placement
    most_workers: int
    survives: bool = False
    num_spares: int = 0
    more_options: tuple[str, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    yields: bool = False
    coordinator_shell: tuple[str, ...] = ()

    @property
    def num_waiting(self) -> int:
        """How many spares there are, which can help only where the others go on when one dies."""
        return self.num_spares if self.survives and self.launcher.reports_deaths and self.num_workers > 1 else 0

    def set_options(self) -> list[str]:
        return [argument for override in self.overrides for argument in ("--set", override)]

    def bind_options(self) -> list[str]:
        return [] if self.binds else ["--no-bind"]

    def hostfile(self) -> str:
        """The hosts for mpirun, with how many ranks each takes; spares, which come last, on the last one. Beyond the
        slots mpirun would have the first host take more, and so ranks of the team."""
        *others, last = self.placement.hosts
        return open_mpi_hostfile([*others, replace(last, slots=last.slots + self.num_waiting)])

    def mpirun(self, arguments: list[str], hostfile: Path = Path("hostfile")) -> list[str]:
        """The mpirun line that starts workers with these arguments, on the hosts of that file if there are several."""
        # What the user says about networks comes first.
        interfaces = () if any("_if_" in option for option in self.more_options) else self.interfaces
        where = launcher_options(self.launcher, self.placement, hostfile, interfaces, self.yields)
        return mpirun_command(
            self.launcher,
            self.num_workers,
            arguments,
            self.kernels,
            survives=self.survives and self.num_workers > 1,
            counts_cores=not self.placement.hosts,
            num_spares=self.num_waiting,
            more=(*where, *self.more_options),
        )
