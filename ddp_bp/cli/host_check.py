"""`ddp-bp host-check`, which `train` runs on each host before it starts ranks there: what is on this host, as JSON.

Decides nothing: whoever asked compares.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import click
import msgspec

from ddp_bp.cli.launcher import find_launcher
from ddp_bp.cli.network import Interface, interface_towards
from ddp_bp.cli.processor import this_processor
from ddp_bp.errors import LaunchError
from ddp_bp.worker.assemble import versions
from ddp_bp.worker.blas import blas_in_use

CONNECT_SECONDS = 5.0


class HostReport(msgspec.Struct, frozen=True):
    """A host, as it sees itself.

    boot_id: Linux' name for its latest start, which no other machine has.
    software: what decides bits, or must be one on all hosts, by name. library: the BLAS without its kernels.
    interface: the one over which it reaches the host that asks. unreachable: of the addresses to connect to, those that
    did not answer, and why. missing: of the paths to look for, those that are not there.
    """

    hostname: str
    boot_id: str
    software: dict[str, str]
    library: str
    kernels: str
    processor_model: str
    processor_flags: list[str]
    num_cores: int
    unix_seconds: float
    interface: Interface | None = None
    unreachable: dict[str, str] = {}
    missing: list[str] = []


def report_host(towards: str | None = None, connect: Sequence[str] = (), paths: Sequence[str] = ()) -> HostReport:
    """What there is on this host, whether `HOST:PORT` addresses answer from here, and which paths are missing."""
    blas, processor = blas_in_use(), this_processor()
    try:
        mpi = find_launcher().library
    except LaunchError:
        mpi = "no mpirun"
    known = versions()
    return HostReport(
        hostname=socket.gethostname(),
        boot_id=_boot_id(),
        software={
            "Python": known["python"],
            "ddp_bp": known["ddp_bp"],
            "the code of ddp_bp": _code_digest(),
            "NumPy": known["numpy"],
            "mpi4py": _version("mpi4py"),
            "MPI": mpi,
        },
        library=f"{blas.library} {blas.version}",
        kernels=blas.kernels,
        processor_model=processor.model,
        processor_flags=sorted(processor.flags),
        num_cores=len(os.sched_getaffinity(0)),
        interface=interface_towards(towards) if towards is not None else None,
        unreachable={address: why for address in connect if (why := _connects(address)) is not None},
        missing=[path for path in paths if not Path(path).exists()],
        unix_seconds=time.time(),
    )


@click.command(name="host-check")
@click.option("--towards", help="The host that asks.")
@click.option("--connect", multiple=True, metavar="HOST:PORT", help="Try a connection; may be repeated.")
@click.option("--path", "paths", multiple=True, help="Look whether it is there; may be repeated.")
def host_check(towards: str | None, connect: tuple[str, ...], paths: tuple[str, ...]) -> int:
    """Say in JSON what is on this host."""
    sys.stdout.write(msgspec.json.encode(report_host(towards, connect, paths)).decode() + "\n")
    return 0


def _connects(address: str) -> str | None:
    """Why `HOST:PORT` cannot be reached from here; None if it can."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except TimeoutError:
        return f"no answer within {CONNECT_SECONDS:g} s"
    except OSError as error:
        return error.strerror or str(error)
    return None


def _code_digest() -> str:
    """Of the package's own source, so that two checkouts of one version are told apart. 12 hex digits."""
    folder = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"
