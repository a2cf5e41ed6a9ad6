"""A process that computes with PyTorch on behalf of a rank, as `python -m ddp_bp.bench.torch_process`: see `Order`.

So neither library meets the other's threads, allocator and settings. It has no MPI.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import Any, BinaryIO

import msgspec

from ddp_bp.bench.models import BenchModel, made_up_samples
from ddp_bp.bench.torch_orders import Build, Done, Found, Join, Leave, Look, Order, Steps, send
from ddp_bp.bench.torch_peer import DdpTraining, Rendezvous, find_torch
from ddp_bp.errors import InputError


class TorchProcess:
    """Carries out orders."""

    def __init__(self) -> None:
        self._torch: Any = None
        self._rendezvous: Rendezvous | None = None
        self._group = ExitStack()
        self._trainings: dict[int, DdpTraining] = {}

    def carry_out(self, order: Order) -> msgspec.Struct:
        """Do as told; the answer. Raises InputError for what can only be told after something else."""
        match order:
            case Look(host, rank, world_size):
                self._torch = find_torch()
                if self._torch is None:
                    return Found(None)
                self._rendezvous = Rendezvous(host, rank, world_size)
                return Found(str(self._torch.__version__), self._rendezvous.port)
            case Join(host, port) if self._rendezvous is not None:
                self._group.enter_context(self._rendezvous.join(host, port))
                return Done()
            case Build(widths, batch_per_rank, bucket_mb) if self._rendezvous is not None:
                samples = made_up_samples(BenchModel(widths, batch_per_rank, 1), batch_per_rank)
                self._trainings.pop(bucket_mb, None)
                self._trainings[bucket_mb] = DdpTraining(self._torch, widths, *samples, bucket_mb)
                return Done()
            case Steps(bucket_mb, count) if bucket_mb in self._trainings:
                return Done(self._trainings[bucket_mb].steps(count))
            case Leave():
                self._trainings.clear()
                self._group.close()
                return Done()
        raise InputError(f"the process for PyTorch was told {order}, which takes another order before it")


def serve(orders: BinaryIO, answers: BinaryIO) -> None:
    """Carry out orders until there are no more."""
    process, decoder = TorchProcess(), msgspec.json.Decoder(Order)
    for line in orders:
        send(answers, process.carry_out(decoder.decode(line)))


def main() -> None:
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
