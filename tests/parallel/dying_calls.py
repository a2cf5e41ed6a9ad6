"""Ranks that die one after another while others call: `mpirun --with-ft ulfm -n 8 python dying_calls.py`.

Every call that ends gives what it is to give, or says that a rank has died. What they agree on is the same on all.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading

import numpy as np

from ddp_bp.cli.environment import prepare_for_deaths
from ddp_bp.errors import PeerLostError
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.mpi import open_communicator


def call_until_one_dies(communicator: Communicator, agreed: list[int]) -> None:
    for turn in range(10**9):
        try:
            call_all(communicator, turn)
            came_through = 5
        except PeerLostError:
            communicator.revoke()
            came_through = 0
        agreed.append(communicator.agree(came_through))
        if agreed[-1] != 5:
            return


def call_all(communicator: Communicator, turn: int) -> None:
    rank, size = communicator.rank, communicator.size
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
        agreed: list[int] = []
        call_until_one_dies(communicator, agreed)
        communicator, _ = communicator.survivors()
        assert communicator.size == dying, (communicator.size, dying, agreed[-3:])
        everyone = [json.loads(said) for said in communicator.allgather_bytes(json.dumps(agreed).encode())]
        assert all(said == agreed for said in everyone), everyone
    print(f"{first.size - 1} deaths", flush=True)


if __name__ == "__main__":
    main()
