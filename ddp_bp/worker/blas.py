"""Which BLAS computes here, and whether all ranks have the same one.

Products of the same matrices differ in their last bits from one kernel family to another. This module looks at what is
loaded; what to load is decided by those who start processes.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass

import numpy  # noqa: F401  (loads the library that is to be found)
import threadpoolctl

from ddp_bp.errors import DisagreementError
from ddp_bp.parallel.communicator import Communicator

OPENBLAS = "OpenBLAS"
_NAMES = {"openblas": OPENBLAS, "mkl": "MKL", "blis": "BLIS", "flexiblas": "FlexiBLAS"}


@dataclass(frozen=True)
class Blas:
    """A BLAS library that is loaded. `kernels` is its kernel family in its own words, empty if it names none."""

    library: str
    version: str
    kernels: str
    num_threads: int

    def __str__(self) -> str:
        """What decides the bits of a product, as manifests record it: `OpenBLAS 0.3.31 SkylakeX`."""
        return " ".join(part for part in (self.library, self.version, self.kernels) if part)


def blas_in_use() -> Blas:
    """The BLAS of NumPy in this process."""
    loaded = [library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
    # A model's own imports may have loaded others. NumPy's came first, or lies in NumPy's own folder.
    loaded.sort(key=lambda library: "numpy" not in library["filepath"])
    if not loaded:
        return Blas("unknown", "", "", 1)
    found = loaded[0]
    return Blas(
        _NAMES.get(found["internal_api"], found["internal_api"]),
        found["version"] or "",
        found.get("architecture") or "",
        found["num_threads"],
    )


def recorded_kernels(text: str) -> str | None:
    """The kernel family in what `str(Blas)` gave, if that was an OpenBLAS."""
    words = text.split()
    return words[-1] if len(words) == 3 and words[0] == OPENBLAS else None


def gather_blas(communicator: Communicator) -> list[tuple[str, str]]:
    """(host name, BLAS) of every rank, in rank order. Collective."""
    own = json.dumps([socket.gethostname(), str(blas_in_use())]).encode()
    return [(host, blas) for host, blas in map(json.loads, communicator.allgather_bytes(own))]


def check_same_blas(gathered: list[tuple[str, str]]) -> None:
    """Raise DisagreementError, with ranks, hosts and what to do, if the ranks do not compute with the same BLAS."""
    kinds = list(dict.fromkeys(blas for _, blas in gathered))
    if len(kinds) == 1:
        return
    found = []
    for kind in kinds:
        ranks = [str(rank) for rank, (_, blas) in enumerate(gathered) if blas == kind]
        hosts = sorted({host for host, blas in gathered if blas == kind})
        found.append(f"{kind} on rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)} ({', '.join(hosts)})")
    raise DisagreementError(
        f"ranks compute with different BLAS kernels, and so would not give the same bits: expected one kind on all, "
        f"got {'; '.join(found)}. Where only the last word differs, set blas.kernels in the recipe to one that every "
        'host has, for example [blas] kernels = "Haswell", with OPENBLAS_CORETYPE unset or the same everywhere; '
        "else install the same NumPy everywhere. Or allow it with blas.allow_mixed = true: "
        "the weights then depend on which rank computes what"
    )
