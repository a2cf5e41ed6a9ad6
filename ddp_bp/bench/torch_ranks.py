"""PyTorch in processes of its own, one beside each rank and on its cores, which sleeps while it has nothing to do.

A rank that has given an order sleeps as well until it is answered, so that the two take turns on one core.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from ddp_bp.bench.models import BenchModel
from ddp_bp.bench.torch_orders import Build, Done, Found, Join, Leave, Look, Order, Steps, send
from ddp_bp.errors import DistributedError
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.nodes import Nodes

Answer = TypeVar("Answer", Found, Done)

_END_SECONDS = 30


class TorchRanks:
    """What the ranks of a communicator have computed by PyTorch. All methods are collective."""

    def __init__(self, process: subprocess.Popen[bytes], rank: int, version: str) -> None:
        self._process, self._rank = process, rank
        self.version = version

    def build(self, model: BenchModel, bucket_mb: int) -> None:
        """A network under DistributedDataParallel, in the place of the one before of that bucket size."""
        self._done(Build(model.widths, model.batch_per_rank, bucket_mb))

    def steps(self, bucket_mb: int, count: int) -> float:
        """Train the network of that bucket size for `count` steps; the loss of this rank in the last one."""
        loss = self._done(Steps(bucket_mb, count)).loss
        return float("nan") if loss is None else loss

    def _done(self, order: Order) -> Done:
        return _ask(self._process, self._rank, order, Done)


@contextmanager
def torch_ranks(communicator: Communicator, nodes: Nodes) -> Iterator[TorchRanks | None]:
    """PyTorch's processes for as long as the block lasts, or None unless all ranks have PyTorch with gloo. Collective.

    Raises:
        DistributedError: such a process has ended; its own error stands above.
    """
    rank, size = communicator.rank, communicator.size
    host = "127.0.0.1" if len(nodes.ranks) == 1 else socket.gethostname()
    process, found = None, Found(None)
    if importlib.util.find_spec("torch") is not None:
        command = [sys.executable, "-m", "ddp_bp.bench.torch_process"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if process is not None:
            found = _ask(process, rank, Look(host, rank, size), Found)
        told = [
            json.loads(data)
            for data in communicator.allgather_bytes(json.dumps([found.version is not None, host, found.port]).encode())
        ]
        if process is None or found.version is None or not all(is_there for is_there, _, _ in told):
            yield None
            return
        _, host, port = told[0]
        _ask(process, rank, Join(host, port), Done)
        yield TorchRanks(process, rank, found.version)
        _ask(process, rank, Leave(), Done)
        # What rank 0 listens with must not go before the others have left.
        communicator.barrier()
    finally:
        if process is not None:
            _end(process)


def _ask(process: subprocess.Popen[bytes], rank: int, order: Order, kind: type[Answer]) -> Answer:
    assert process.stdin is not None and process.stdout is not None
    line = b""
    try:
        send(process.stdin, order)  # type: ignore[arg-type]
        line = process.stdout.readline()
    except BrokenPipeError:
        pass
    if not line:
        raise DistributedError(f"rank {rank}: the process for PyTorch has ended, when told {order}")
    return msgspec.json.decode(line, type=kind)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process, which does so by itself when its input ends."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.close()
        process.wait(_END_SECONDS)
    except (BrokenPipeError, subprocess.TimeoutExpired):
        process.kill()
        process.wait()
    finally:
        process.stdout.close()
