"""Comparison of what every rank holds: parameters (one copy on each node), buffers, and counters.

They are the same bits everywhere, or a machine has changed some. Slices of the optimizer's state, of which there is one
copy in all, have nothing to be compared with. Each update sends parameters out anew, over what a node may have changed
in its copy; so that ranks compare before it, when the gradients of all of them have been computed from their copies.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections import Counter

import numpy as np

from ddp_bp.engine.buffers import Buffers
from ddp_bp.engine.flat import FlatParameters
from ddp_bp.errors import DisagreementError
from ddp_bp.optim import ExponentialMovingAverage, Optimizer
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.nodes import Nodes
from ddp_bp.worker.digest import checksum

WHAT = ("parameters", "buffers", "counters and settings of the optimizer")


class Comparison:
    """One rank's part. Construct and call on all ranks alike."""

    def __init__(
        self,
        communicator: Communicator,
        nodes: Nodes,
        parameters: FlatParameters,
        buffers: Buffers,
        optimizer: Optimizer,
        average: ExponentialMovingAverage | None,
        every_steps: int,
    ) -> None:
        """`every_steps`: after how many steps ranks compare; 0: never."""
        self._communicator, self._nodes, self._every_steps = communicator, nodes, every_steps
        self._parameters, self._buffers = parameters, buffers
        self._optimizer, self._average = optimizer, average

    def run_if_due(self, step: int) -> None:
        """`run`, in every so many steps, before the update of step `step`. Collective."""
        if self._every_steps and step % self._every_steps == 0:
            self.run(f"before the update of step {step}")

    def run(self, when: str) -> None:
        """Compare what the ranks hold, `when` in words, unless the recipe says never. Collective.

        Raises DisagreementError on all ranks, naming those that differ from most and all digests.
        """
        if not self._every_steps or self._communicator.size == 1:
            return
        own = np.array([checksum(self._parameters.data), self._buffers_digest(), self._counters()], np.uint64)
        table = np.zeros((self._communicator.size, own.size), np.uint64)
        self._communicator.allgather(own, table)
        differing = np.flatnonzero((table != table[0]).any(axis=0)).tolist()
        if differing:
            self._accuse(when, WHAT[differing[0]], table[:, differing[0]].tolist())

    def _accuse(self, when: str, what: str, digests: list[int]) -> None:
        told = self._communicator.allgather_bytes(json.dumps(socket.gethostname()).encode())
        places = [
            f"rank {rank} (node {node}, {json.loads(host)})"
            for rank, (node, host) in enumerate(zip(self._nodes.node_of_rank, told, strict=True))
        ]
        got = ", ".join(f"{place}: {digest:#018x}" for place, digest in zip(places, digests, strict=True))
        (most, count), *others = Counter(digests).most_common()
        wrong = [place for place, digest in zip(places, digests, strict=True) if digest != most]
        blame = f"Most agree, but not {', '.join(wrong)}" if count > others[0][1] else "No more agree than not"
        raise DisagreementError(
            f"{when} the ranks hold different {what}: expected the same bits on all, got {got}. "
            f"{blame}. A machine or the model's own code has changed them; go on from a checkpoint, without that "
            "machine if it happens again"
        )

    def _buffers_digest(self) -> int:
        sums = np.array([checksum(values) for values in self._buffers.committed], np.uint64)
        return checksum(sums)

    def _counters(self) -> int:
        numbers = [self._optimizer.num_steps, self._average.num_updates if self._average else 0]
        settings = [sorted(group.settings.items()) for group in self._optimizer.param_groups]
        return int.from_bytes(hashlib.sha256(repr((numbers, settings)).encode()).digest()[:8], "little")
