"""Which ranks share memory: found by trying, because host names and containers lie.

Each rank offers a small piece of memory under `/proc`, and looks for those of the others. Ranks of one host that are in
different containers do not find each other, and so are different nodes.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from ddp_bp.parallel.communicator import Bounds, Communicator
from ddp_bp.parallel.membership import split_range

_NONCE_BYTES = 16
_PROBE = "ddp_bp probe"


class Nodes:
    """The ranks by node. Nodes are numbered in the order of their lowest rank, and list their ranks in order."""

    def __init__(self, node_of_rank: list[int]) -> None:
        self.node_of_rank = tuple(node_of_rank)
        self.ranks = tuple(
            tuple(rank for rank, node in enumerate(node_of_rank) if node == number)
            for number in range(len(set(node_of_rank)))
        )

    def of_ranks(self, ranks: Sequence[int]) -> Nodes:
        """The nodes of these ranks alone, which are numbered anew as they stand here."""
        before = [self.node_of_rank[rank] for rank in ranks]
        kept = list(dict.fromkeys(before))
        return Nodes([kept.index(number) for number in before])


def nodes_of_survivors(nodes: Nodes, survivors: Sequence[int]) -> tuple[Nodes, list[int]]:
    """The nodes of the ranks that are left, numbered anew as they are, and of each its number before."""
    kept = list(dict.fromkeys(nodes.node_of_rank[rank] for rank in survivors))
    return nodes.of_ranks(survivors), kept


def slices_by_rank(nodes: Nodes, ranges: Sequence[Bounds]) -> list[Bounds]:
    """What each rank updates: its part of the elements `ranges[n]` that belong to the ranks of node n.

    So what a node updates does not change when one of its ranks goes.
    """
    slices: list[Bounds] = [(0, 0)] * len(nodes.node_of_rank)
    for ranks, bounds in zip(nodes.ranks, ranges, strict=True):
        for rank, piece in zip(ranks, split_range(bounds, len(ranks)), strict=True):
            slices[rank] = piece
    return slices


def find_nodes(communicator: Communicator) -> Nodes:
    """Which ranks of `communicator` can share memory. Collective."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    fd = os.memfd_create(_PROBE)
    try:
        os.write(fd, nonce)
        offers = communicator.allgather_bytes(json.dumps([os.getpid(), fd, nonce.hex()]).encode())
        lowest = next(rank for rank, offer in enumerate(offers) if rank == communicator.rank or _is_found(offer))
        # Nobody takes its offer back before all have looked for it.
        lowest_of_rank = [int(data) for data in communicator.allgather_bytes(str(lowest).encode())]
    finally:
        os.close(fd)
    numbers = {rank: number for number, rank in enumerate(dict.fromkeys(lowest_of_rank))}
    return Nodes([numbers[rank] for rank in lowest_of_rank])


def memory_name(name: str) -> str:
    """What the system calls memory that was shared under this name."""
    return f"ddp_bp {name}"


def share(communicator: Communicator, nodes: Nodes, num_bytes: int, name: str) -> mmap.mmap:
    """Memory of `num_bytes`, zeroed, that all ranks of a node see. Collective.

    It has no name in any file system and is gone when the last of its processes has ended, however that was.
    """
    ranks = nodes.ranks[nodes.node_of_rank[communicator.rank]]
    fd = -1
    try:
        if communicator.rank == ranks[0]:
            fd = os.memfd_create(memory_name(name))
            os.ftruncate(fd, max(num_bytes, 1))
        offers = communicator.allgather_bytes(json.dumps([os.getpid(), fd]).encode())
        if communicator.rank != ranks[0]:
            pid, their_fd = json.loads(offers[ranks[0]])
            try:
                fd = os.open(f"/proc/{pid}/fd/{their_fd}", os.O_RDWR)
            except OSError:
                # Who has offered it may have died since, which the others hear of as well.
                communicator.barrier()
                raise
        memory = mmap.mmap(fd, max(num_bytes, 1))
        communicator.barrier()
    finally:
        if fd >= 0:
            os.close(fd)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A kernel may give shared memory no huge pages; small ones do as well, more slowly.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _is_found(offer: bytes) -> bool:
    """Whether this process can read the memory of an offer."""
    pid, fd, nonce = json.loads(offer)
    path = Path(f"/proc/{pid}/fd/{fd}")
    try:
        # A process of another container may have the number of one here, whose file is a pipe: to read it would be to
        # wait for ever, or to take what somebody else waits for.
        if str(path.readlink()) != f"/memfd:{_PROBE} (deleted)":
            return False
        with path.open("rb") as file:
            return bool(file.read(_NONCE_BYTES).hex() == nonce)
    except OSError:
        return False
