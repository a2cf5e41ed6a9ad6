"""A communicator of one process: what a plain script or `-n 1` without a launcher has. Knows nothing of MPI."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np

from ddp_bp.parallel.communicator import Array, Communicator


class SingleCommunicator:
    """World size 1. See `Communicator` for what each method means."""

    rank = 0
    size = 1
    can_lose_ranks = False
    allows_threads = True

    def barrier(self) -> None:
        """Nothing to wait for."""

    def allgather(self, send: Array, receive: Array) -> None:
        np.copyto(receive[0], send)

    def exchange(self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]) -> None:
        if sends or receives:
            raise ValueError("rank 0 of 1 has nobody to exchange messages with")

    def start_exchange(
        self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]
    ) -> Callable[[], None]:
        self.exchange(sends, receives)
        return lambda: None

    def allreduce_sum(self, array: Array) -> None:
        """The sum over one rank is there already."""

    def broadcast(self, buffer: Array, root: int) -> None:
        if root != 0:
            raise ValueError(f"broadcast: expected a root below the world size 1, got {root}")

    def allgather_bytes(self, data: bytes) -> list[bytes]:
        return [data]

    def part(self, takes_part: bool) -> Communicator | None:
        return SingleCommunicator() if takes_part else None

    def duplicate(self) -> Communicator:
        return SingleCommunicator()

    def revoke(self) -> None:
        """Nobody else is there."""

    def is_revoked(self) -> bool:
        return False

    def dead(self) -> tuple[int, ...]:
        return ()

    def agree(self, flags: int) -> int:
        return flags

    def survivors(self) -> tuple[Communicator, tuple[int, ...]]:
        return self, (0,)

    def abort(self, exit_code: int) -> NoReturn:
        os._exit(exit_code)

    def describe(self) -> str:
        return "one process, no MPI"

    def close(self) -> None:
        """Nothing to release."""
