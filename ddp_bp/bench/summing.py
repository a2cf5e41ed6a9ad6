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
from ddp_bp.parallel.communicator import Array, Communicator
from ddp_bp.parallel.exchange import Exchange, TakeBlock
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
    """The exchange of training, one shard a rank, whose sums are copied to where all ranks of a node read them."""

    def __init__(self, communicator: Communicator, nodes: Nodes, num_elements: int, ring: int) -> None:
        self._exchanges: list[_RingExchange] = []
        sums = []
        for _ in range(ring):
            exchange = _RingExchange(communicator, nodes, num_elements, communicator.size, np.float32)
            exchange.use_scratch_of(self._exchanges[0] if self._exchanges else exchange)
            self._exchanges.append(exchange)
            sums.append(exchange.allocate("sum", num_elements, np.float32))
        super().__init__([exchange.partials[0] for exchange in self._exchanges], sums)
        self._takes = [_copy_to(total) for total in sums]

    def run(self, number: int) -> None:
        place = number % len(self._exchanges)
        exchange = self._exchanges[place]
        exchange.reduce(self._takes[place])
        exchange.publish(self.sums[place])


class MpiAllreduce(Summing):
    """`MPI_Allreduce` in place, by the algorithm that the library chooses."""

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


class _RingExchange(Exchange):
    """One of several exchanges that take turns where training has one."""

    def use_scratch_of(self, other: _RingExchange) -> None:
        """Sum blocks in the same memory as `other`, of equal shape: the one of training finds its own in the cache."""
        self._walk = other._walk


def _copy_to(total: Array) -> TakeBlock:
    def take(lo: int, hi: int, block: Array) -> None:
        total[lo:hi] = block

    return take
