"""Ways to sum a vector over all ranks: each with a ring of vectors, so that a call finds its own out of the cache.

What a call takes is the time from "every rank has its part" to "every rank can read the sum".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from ddp_bp.bench.torch_peer import TorchPeer
from ddp_bp.errors import DistributedError
from ddp_bp.parallel.arena import Arena
from ddp_bp.parallel.communicator import Array, Communicator
from ddp_bp.parallel.exchange import Exchange
from ddp_bp.parallel.holdings import of_shard_runs
from ddp_bp.parallel.nodes import Nodes


class Summing(ABC):
    """`parts[i]` (n,) float32 is this rank's part in call i, `sums[i]` where the sum is then to be read."""

    def __init__(self, parts: list[Array], sums: list[Array]) -> None:
        self.parts, self.sums = parts, sums

    @abstractmethod
    def run(self, number: int) -> None:
        """Sum the vectors whose turn it is in the call of that number, counted from 0. Collective."""

    def verify(self, communicator: Communicator) -> None:
        """Sum what has a known sum, in every vector of the ring once, and leave zeros behind. Collective.

        So all pages are there afterwards, and calls that sum in place do not overflow.

        Raises:
            DistributedError: a sum is wrong.
        """
        size = communicator.size
        problem = ""
        for number, (part, total) in enumerate(zip(self.parts, self.sums, strict=True)):
            part.fill(communicator.rank + 1)
            communicator.barrier()
            self.run(number)
            expected = size * (size + 1) / 2
            if not (total == expected).all():
                problem = f"expected sums of {expected:g}, got values from {total.min():g} to {total.max():g}"
            communicator.barrier()
            part.fill(0)
        # Not before all is done: the other ranks would wait.
        if problem:
            raise DistributedError(f"{type(self).__name__} on rank {communicator.rank} of {size}: {problem}")


class OurExchange(Summing):
    """The exchange of training, one shard a rank, in place as the others: the sum replaces the first part of a node."""

    def __init__(self, communicator: Communicator, nodes: Nodes, num_elements: int, ring: int) -> None:
        arena, size = Arena(communicator, nodes), communicator.size
        parts, sums, self._calls = [], [], []
        for _ in range(ring):
            stack, holdings = of_shard_runs(arena, num_elements, size, np.float32)
            exchange = Exchange(communicator, nodes, num_elements, size, holdings)
            parts.append(stack[0])
            sums.append(holdings.vectors[0])
            self._calls.append(exchange.summing_into(sums[-1]))
        super().__init__(parts, sums)

    def run(self, number: int) -> None:
        self._calls[number % len(self._calls)]()


class MpiAllreduce(Summing):
    """`MPI_Allreduce` in place, by the algorithm that MPI was started with."""

    def __init__(self, communicator: Communicator, num_elements: int, ring: int) -> None:
        vectors = [np.zeros(num_elements, np.float32) for _ in range(ring)]
        super().__init__(vectors, vectors)
        self._communicator = communicator

    def run(self, number: int) -> None:
        self._communicator.allreduce_sum(self.parts[number % len(self.parts)])


class GlooAllreduce(Summing):
    """gloo's all-reduce in place, as PyTorch calls it."""

    def __init__(self, peer: TorchPeer, num_elements: int, ring: int) -> None:
        vectors = [np.zeros(num_elements, np.float32) for _ in range(ring)]
        super().__init__(vectors, vectors)
        self._calls: list[Callable[[], Any]] = [peer.allreduce(vector) for vector in vectors]

    def run(self, number: int) -> None:
        self._calls[number % len(self._calls)]()
