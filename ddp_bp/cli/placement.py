"""On which hosts the ranks of a job run, and what of that a launcher is told. Starts nothing."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ddp_bp.cli.environment import default_hostfile, network_is_chosen, passed_on, slurm_allocation
from ddp_bp.cli.hosts import (
    Host,
    expand_counts,
    expand_node_list,
    merged,
    num_slots,
    parse_hosts,
    read_hostfile,
    used_by,
)
from ddp_bp.cli.launcher import Launcher
from ddp_bp.cli.network import Interface, interface_towards, is_this_host, source_address
from ddp_bp.errors import InputError
from ddp_bp.recipes.schema import Recipe

SLURM = "SLURM_JOB_NODELIST"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Placement:
    """The ranks of a job by host.

    hosts: those that ranks run on, in the order of ranks, with how many each has; empty: all ranks on this one.
    offered: all that may be used, with their slots.
    source: who named them: `--hosts`, or a variable.
    remote: the names of those hosts that are not this one.
    """

    num_ranks: int
    hosts: tuple[Host, ...] = ()
    offered: tuple[Host, ...] = ()
    source: str = ""
    remote: tuple[str, ...] = ()

    @property
    def spans_hosts(self) -> bool:
        """Whether a rank runs on another host than this one."""
        return bool(self.remote)

    @property
    def most_ranks(self) -> int | None:
        """How many ranks these hosts take, or this one, if none runs on another; None: as many as anybody wants."""
        here = [host for host in self.offered if is_this_host(host.name)]
        return num_slots(self.offered if self.spans_hosts else here) if self.offered else None

    def resized(self, num_ranks: int) -> Placement:
        """The same with another number of ranks, up to `most_ranks`."""
        if num_ranks > num_slots(self.offered):
            return replace(self, num_ranks=num_ranks)
        return _placed(self.offered, num_ranks, self.source)

    def without(self, lost: Sequence[str]) -> Placement:
        """The ranks on what is offered without the `lost` hosts: as many as before, as far as these take them."""
        if not self.spans_hosts:
            return self
        left = tuple(host for host in self.offered if host.name not in lost)
        placed = _placed(left, min(self.num_ranks, num_slots(left)), self.source)
        return replace(placed, offered=self.offered)

    def with_coordinator_host(self, recipe: Recipe, overrides: tuple[str, ...]) -> tuple[str, ...]:
        """`overrides`, and an address that the other hosts reach where the recipe has the coordinator listen on
        127.0.0.1, which they cannot."""
        if not self.spans_hosts or recipe.coordinator.host not in _LOOPBACK:
            return overrides
        ways = (source_address(name) for name in (*self.remote, socket.gethostname()))
        address = next((way for way in ways if way is not None), None)
        return (*overrides, f"coordinator.host={address}") if address is not None else overrides


def find_placement(hosts: str | None, hostfile: Path | None, num_workers: int | None, launcher: Launcher) -> Placement:
    """Where ranks are to run: on the hosts that the user names, else on those that the launcher is told of by its
    environment, else here.

    Args:
        hosts, hostfile: the values of `--hosts` and `--hostfile`.
        num_workers: how many ranks; None: one for each slot, and one where nobody names hosts.

    Raises:
        InputError: the hosts cannot be read, are not known here, or do not take so many ranks; or the launcher cannot
            be told of them.
    """
    if hosts is not None and hostfile is not None:
        raise InputError("--hosts and --hostfile both say which hosts to use; give one of them")
    source, offered = _offered(hosts, hostfile)
    if not offered:
        return Placement(num_workers or 1)
    total = num_slots(offered)
    if (num_workers or 0) > total and (not all(is_this_host(host.name) for host in offered) or hosts or hostfile):
        raise InputError(
            f"-n {num_workers}: expected at most {total} ranks, the sum of the slots that {source} gives "
            f"({_listed(offered)}); give the hosts more slots, or fewer ranks"
        )
    if source != SLURM:
        # This host holds the run directory, which rank 0 reads; a launcher in Slurm keeps Slurm's order.
        offered = tuple(sorted(offered, key=lambda host: not is_this_host(host.name)))
    placed = _placed(offered, num_workers or total, source)
    if placed.spans_hosts and source != SLURM and not launcher.is_open_mpi:
        raise InputError(
            f"{source}: expected Open MPI's mpirun, which `train` starts on several hosts; got {launcher.path} of "
            f"{launcher.library}. Start `ddp-bp worker` under that launcher yourself, with "
            "--set coordinator.host=ADDRESS, or install Open MPI"
        )
    # Slurm starts ranks by the names of its nodes, which need not be those of hosts.
    unknown = [name for name in placed.remote if source != SLURM and source_address(name) is None]
    if unknown:
        raise InputError(
            f"{source}: {', '.join(unknown)}: expected names or addresses that this host knows and has a route to, "
            "found none; check the spelling, /etc/hosts and the network"
        )
    return placed


def launcher_options(
    launcher: Launcher, placement: Placement, hostfile: Path, interfaces: Sequence[Interface] = (), yields: bool = False
) -> list[str]:
    """What mpirun is told about the hosts, in the `hostfile` for one.

    Args:
        interfaces: those by which the hosts reach each other, as far as they are known.
        yields: whether a host has more ranks than cores.
    """
    if not launcher.is_open_mpi:
        return []
    if not placement.hosts:
        here = [host.name for host in placement.offered if is_this_host(host.name)]
        # mpirun itself has been told of more hosts than this one.
        is_told = here and len(here) < len(placement.offered) and not placement.source.startswith("--")
        return ["--host", f"{here[0]}:{placement.num_ranks}"] if is_told else []
    options = ["--map-by", "slot"]
    if placement.source != SLURM or placement.hosts != used_by(placement.offered, placement.num_ranks):
        options += ["--hostfile", str(hostfile)]
    network = common_network(interfaces) if not network_is_chosen() else None
    if network is not None:
        # Virtual interfaces, such as those of containers, lead nowhere, and Open MPI would try them.
        options += ["--mca", "btl_tcp_if_include", network]
        is_new = not launcher.library.startswith(("Open MPI 4", "Open MPI 3", "OpenRTE"))
        options += ["--prtemca", "prte_if_include", network] if is_new else ["--mca", "oob_tcp_if_include", network]
    if yields:
        options += ["--mca", "mpi_yield_when_idle", "true"]
    return [*options, *(word for name in passed_on() for word in ("-x", name))]


def common_network(interfaces: Sequence[Interface]) -> str | None:
    """What names the right interface on every host: their network, else its name where that is one; None: nothing."""
    # Nodes of a batch system that are one machine; Open MPI does not count its loopback as a network.
    interfaces = [item for item in interfaces if not item.address.startswith("127.")]
    networks, names = {item.network for item in interfaces}, {item.name for item in interfaces}
    if len(networks) == 1:
        return next(iter(networks))
    return next(iter(names)) if len(names) == 1 else None


def own_interfaces(placement: Placement) -> list[Interface]:
    """This host's interfaces towards the others, each once."""
    found = (interface_towards(name) for name in placement.remote)
    return list(dict.fromkeys(item for item in found if item is not None))


def _offered(hosts: str | None, hostfile: Path | None) -> tuple[str, tuple[Host, ...]]:
    if hosts is not None:
        return "--hosts", parse_hosts(hosts)
    if hostfile is not None:
        return "--hostfile", read_hostfile(hostfile, "--hostfile")
    if (allocation := slurm_allocation()) is not None:
        nodes, tasks = expand_node_list(allocation[0]), expand_counts(allocation[1])
        if len(nodes) == len(tasks):
            return SLURM, merged(Host(name, count) for name, count in zip(nodes, tasks, strict=True))
    if (default := default_hostfile()) is not None:
        return default[0], read_hostfile(default[1], default[0])
    return "", ()


def _placed(offered: tuple[Host, ...], num_ranks: int, source: str) -> Placement:
    hosts = used_by(offered, num_ranks)
    remote = tuple(host.name for host in hosts if not is_this_host(host.name))
    return Placement(num_ranks, hosts if remote else (), offered, source, remote)


def _listed(hosts: Sequence[Host]) -> str:
    return ", ".join(f"{host.name}: {host.slots}" for host in hosts)
