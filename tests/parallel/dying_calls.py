"""Ranks that die one after another while others call: `mpirun --with-ft ulfm -n 8 python dying_calls.py`.

Every call that ends gives what it is to give, or says that a rank has died.
"""

from __future__ import annotations

import os
import random
import signal
import threading

import numpy as np

from ddp_bp.cli.environment import prepare_for_deaths
from ddp_bp.errors import PeerLostError
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.mpi import open_communicator


def call_until_one_dies(communicator: Communicator) -> None:
    rank, size = communicator.rank, communicator.size
    for turn in range(10**9):
        told = communicator.allgather_bytes(b"%d of %d" % (turn, rank) * rank)
        assert told == [b"%d of %d" % (turn, other) * other for other in range(size)], told
        gathered = np.full((size, 1), -1)
        communicator.allgather(np.array([turn + rank]), gathered)
        assert gathered[:, 0].tolist() == list(range(turn, turn + size)), gathered
        communicator.barrier()
        spread = np.full(20, turn if rank == turn % size else -1)
        communicator.broadcast(spread, turn % size)
        assert (spread == turn).all(), spread


def main() -> None:
    assert prepare_for_deaths()
    first = communicator = open_communicator(can_lose_ranks=True)
    number, draw = first.rank, random.Random(first.rank)
    for dying in range(first.size - 1, 0, -1):
        if number == dying:
            threading.Timer(draw.uniform(0.01, 0.05), os.kill, (os.getpid(), signal.SIGKILL)).start()
        try:
            call_until_one_dies(communicator)
        except PeerLostError:
            communicator, _ = communicator.survivors()
        assert communicator.size == dying
    print(f"{first.size - 1} deaths", flush=True)


if __name__ == "__main__":
    main()
