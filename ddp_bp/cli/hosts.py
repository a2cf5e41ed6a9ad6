"""Hosts and how many ranks each may take: read from a command line, a hostfile or Slurm, written for a launcher.

Knows names and numbers; neither addresses nor who is there.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ddp_bp.errors import InputError

_FORM = "expected a host's name or address, then ':N' or 'slots=N' with N >= 1 ranks that it takes"
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_][A-Za-z0-9_.-]*)(?::(?P<slots>\d+))?")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Host:
    """A host by the name that it is reached by. `slots`: how many ranks it may take, at least 1."""

    name: str
    slots: int = 1


def parse_hosts(text: str) -> tuple[Host, ...]:
    """The hosts of `a:4,b:4`; one without a number takes one rank for each mention. Raises InputError."""
    hosts, problems = [], []
    for word in text.split(","):
        host = _parse(word.strip())
        if host is None:
            problems.append(f"--hosts: {_FORM.replace(' or ' + repr('slots=N'), '')}, got {word.strip()!r}")
        else:
            hosts.append(host)
    if problems:
        raise InputError("; ".join(problems))
    return merged(hosts)


def read_hostfile(path: Path, called: str) -> tuple[Host, ...]:
    """The hosts of a file in Open MPI's format (`host slots=N`) or MPICH's (`host:N`).

    A host without a number takes one rank for each mention. What else a line says, such as `max_slots`, is passed over.
    `called`: who named the file. Raises InputError with all lines that cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{called}: {path} cannot be read: {error}") from error
    hosts, problems = [], []
    for number, line in enumerate(text.splitlines(), 1):
        words = re.sub(r"\s*=\s*", "=", line.partition("#")[0]).split()
        if not words:
            continue
        host = _parse(words[0])
        slots = [word.partition("=")[2] for word in words[1:] if word.startswith("slots=")]
        if host is not None and slots:
            host = replace(host, slots=int(slots[-1])) if slots[-1].isdigit() and int(slots[-1]) else None
        if host is None:
            problems.append(f"{called}: {path}, line {number}: {_FORM}, got {line.strip()!r}")
        else:
            hosts.append(host)
    if problems:
        raise InputError("\n".join(problems))
    if not hosts:
        raise InputError(f"{called}: {path} names no host; {_FORM}, one on each line")
    return merged(hosts)


def expand_node_list(text: str) -> list[str]:
    """The names in Slurm's short form: `n[01-03,7],login` gives n01, n02, n03, n7, login."""
    names: list[str] = []
    for word in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        parts = re.split(r"\[([^\]]*)\]", word)
        choices = [_numbers(part) if index % 2 else [part] for index, part in enumerate(parts)]
        names += ["".join(choice) for choice in itertools.product(*choices)]
    return names


def expand_counts(text: str) -> list[int]:
    """The numbers in Slurm's short form: `2(x3),1` gives 2, 2, 2, 1."""
    return [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(times or 1))]


def merged(hosts: Iterable[Host]) -> tuple[Host, ...]:
    """Each host once, in the order of their first mention, with the sum of its slots."""
    slots: dict[str, int] = {}
    for host in hosts:
        slots[host.name] = slots.get(host.name, 0) + host.slots
    return tuple(Host(name, number) for name, number in slots.items())


def num_slots(hosts: Iterable[Host]) -> int:
    """How many ranks these hosts may take together."""
    return sum(host.slots for host in hosts)


def used_by(hosts: Sequence[Host], num_ranks: int) -> tuple[Host, ...]:
    """The hosts that `num_ranks` ranks are placed on if each is filled before the next; slots are those in use."""
    taken = []
    for host in hosts:
        if num_ranks > 0:
            taken.append(replace(host, slots=min(host.slots, num_ranks)))
            num_ranks -= host.slots
    return tuple(taken)


def open_mpi_hostfile(hosts: Iterable[Host]) -> str:
    """What `mpirun --hostfile` of Open MPI reads."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in hosts)


def described(hosts: Iterable[Host]) -> str:
    """For people: `a (4 ranks), b (1 rank)`."""
    return ", ".join(f"{host.name} ({host.slots} rank{'s' * (host.slots != 1)})" for host in hosts)


def _parse(word: str) -> Host | None:
    found = _HOST.fullmatch(word)
    if found is None or (found["slots"] is not None and int(found["slots"]) < 1):
        return None
    return Host(found["name"].strip("[]"), int(found["slots"] or 1))


def _numbers(text: str) -> list[str]:
    numbers: list[str] = []
    for first, last in _RANGE.findall(text):
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
    return numbers
