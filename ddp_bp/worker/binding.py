"""Cores for ranks: each rank of a machine keeps to a share of the cores of its own, where there is one for each.

Ranks bind themselves, because launchers go by the cores that a machine has and not by those that this job may use: in
a container, or beside another job, `mpirun --bind-to core` takes cores of others. Knows nothing of what ranks compute.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ddp_bp.parallel.communicator import Communicator

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


class Place(msgspec.Struct, frozen=True):
    """Where a rank may run: a running kernel, and by core the CPUs (hardware threads) that the rank is allowed."""

    machine: str
    cores: tuple[tuple[int, ...], ...]


def bind_to_own_cores(communicator: Communicator, num_ranks: int | None = None) -> None:
    """Keep this thread, and those that it will start, to this rank's share of the cores. Collective.

    `num_ranks`: how many ranks are given a share, the first ones; by default all. The others may run anywhere.
    Nothing is bound where ranks outnumber cores, and nothing changes where the launcher has bound them already.
    """
    gathered = communicator.allgather_bytes(msgspec.json.encode(_this_place()))
    places = [msgspec.json.decode(data, type=Place) for data in gathered[:num_ranks]]
    own = shares(places)[communicator.rank] if communicator.rank < len(places) else None
    if own is not None:
        # A system may forbid it; then ranks run where its scheduler puts them.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, own)


def shares(places: Sequence[Place]) -> list[frozenset[int] | None]:
    """The CPUs for each rank, of which no two ranks of a machine have a core in common; None: leave it as it is.

    Ranks that may use the same cores divide them evenly, in rank order, into runs of neighbours. A share may have more
    than one core: a rank computes on one thread, and its communication then has another.
    """
    together: dict[Place, list[int]] = defaultdict(list)
    for rank, place in enumerate(places):
        together[place].append(rank)
    found: list[frozenset[int] | None] = [None] * len(places)
    for place, ranks in together.items():
        cores = place.cores
        others = [other for other in together if other.machine == place.machine and other.cores != cores]
        if len(cores) < len(ranks) or any(_cpus(cores) & _cpus(other.cores) for other in others):
            continue
        for index, rank in enumerate(ranks):
            share = cores[index * len(cores) // len(ranks) : (index + 1) * len(cores) // len(ranks)]
            found[rank] = _cpus(share)
    return found


def _cpus(cores: Sequence[Sequence[int]]) -> frozenset[int]:
    return frozenset(cpu for core in cores for cpu in core)


def _this_place() -> Place:
    allowed = os.sched_getaffinity(0)
    # The same for all containers of a machine, whatever they call their host.
    try:
        machine = _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        machine = socket.gethostname()
    return Place(machine, tuple(sorted({tuple(sorted(_siblings(cpu) & allowed)) for cpu in allowed})))


def _siblings(cpu: int) -> set[int]:
    """The CPUs of one core, `cpu` included."""
    siblings = {cpu}
    with contextlib.suppress(OSError, ValueError):
        for part in Path(_SIBLINGS.format(cpu)).read_text(encoding="ascii").split(","):
            first, _, last = part.strip().partition("-")
            siblings |= set(range(int(first), int(last or first) + 1))
    return siblings
