"""Finding out which ranks share memory, where numbers of processes mean something else to each of them."""

from __future__ import annotations

import json
import os

from ddp_bp.parallel.nodes import find_nodes
from ddp_bp.parallel.single import SingleCommunicator


class Stranger(SingleCommunicator):
    """Rank 1 of two; rank 0 offers a file by numbers that are taken here, as in another container."""

    rank, size = 1, 2

    def __init__(self, pid: int, fd: int) -> None:
        self.offer = json.dumps([pid, fd, "00" * 16]).encode()

    def allgather_bytes(self, data: bytes) -> list[bytes]:
        return [self.offer if data.startswith(b"[") else b"0", data]


def test_pipe_of_a_stranger_with_the_number_of_a_peer_is_left_alone() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"for somebody else")
    os.set_blocking(reading, False)
    try:
        assert find_nodes(Stranger(os.getpid(), reading)).node_of_rank == (0, 1)
        assert os.read(reading, 99) == b"for somebody else"
    finally:
        os.close(reading)
        os.close(writing)
