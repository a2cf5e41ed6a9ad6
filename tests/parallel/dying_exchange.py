"""Ranks of which one is killed while gradients are exchanged: `mpirun --with-ft ulfm -n 3 python dying_exchange.py`.

Those that are left end their exchange, and take up another one without it.
"""

from __future__ import annotations

import os
import signal

import numpy as np

from ddp_bp.cli.environment import prepare_for_deaths
from ddp_bp.errors import PeerLostError
from ddp_bp.parallel.arena import Arena
from ddp_bp.parallel.bucket_exchange import BucketExchange
from ddp_bp.parallel.buckets import cut_buckets
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.holdings import of_shard_runs
from ddp_bp.parallel.mpi import open_communicator
from ddp_bp.parallel.nodes import Nodes

NUM_ELEMENTS, NUM_SHARDS = 300_000, 6


def exchange_of(communicator: Communicator) -> BucketExchange:
    """Each rank is a node of its own, and holds ones."""
    arena = Arena(communicator, Nodes(list(range(communicator.size))))
    stack, holdings = of_shard_runs(arena, NUM_ELEMENTS, NUM_SHARDS, np.float32)
    for vector in stack:
        vector.fill(1)
    totals = arena.allocate("totals", NUM_ELEMENTS, np.float32)
    buckets = cut_buckets(NUM_ELEMENTS, NUM_ELEMENTS, 50_000)
    return BucketExchange(communicator, arena.nodes, NUM_SHARDS, holdings, totals, buckets, in_background=True)


def main() -> None:
    prepare_for_deaths()
    communicator = open_communicator(can_lose_ranks=True)
    exchange = exchange_of(communicator)
    exchange.begin()
    exchange.release()
    if communicator.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    exchange.release_all()
    try:
        exchange.finish()
    except PeerLostError:
        pass
    else:
        raise AssertionError("an exchange without a rank came to its end")
    exchange.close()
    left, numbers = communicator.survivors()
    assert numbers == (0, 2)
    again = exchange_of(left)
    sums: list[np.ndarray] = []
    for _ in range(2):
        sums.clear()
        again.begin()
        again.release_all()
        again.finish()
        again.reduce(lambda lo, hi, total: sums.append(total.copy()))
        # 3 shards of a rank are 2 nodes of the tree, of ones each.
        assert (np.concatenate(sums) == 4).all()
        left.barrier()
    again.close()
    if left.rank == 0:
        print("2 of 3 ranks went on", flush=True)


if __name__ == "__main__":
    main()
