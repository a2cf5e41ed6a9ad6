"""PyTorch as a peer: gloo's all-reduce, and DistributedDataParallel in its best settings.

The only module that imports PyTorch, and only when it is asked for it. Without PyTorch there is no peer.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ddp_bp.errors import InputError
from ddp_bp.parallel.communicator import Array, Communicator
from ddp_bp.parallel.nodes import Nodes

_TIMEOUT = timedelta(seconds=300)


class TorchPeer:
    """PyTorch's default process group over gloo, of the ranks of a communicator."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.version = str(torch.__version__)

    def allreduce(self, array: Array) -> Any:
        """A function without arguments that replaces `array` (n,) by its sum over all ranks, in place."""
        tensor, distributed = self._torch.from_numpy(array), self._torch.distributed
        return lambda: distributed.all_reduce(tensor)

    def ddp(
        self, widths: Sequence[int], inputs: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], bucket_mb: int
    ) -> DdpTraining:
        """A network of `widths` under DistributedDataParallel. Collective."""
        return DdpTraining(self._torch, widths, inputs, targets, bucket_mb)


class DdpTraining:
    """Steps of a multilayer perceptron with cross-entropy and Adam as PyTorch does them fastest on CPUs.

    Gradients are views into the buckets, the graph is declared static, Adam is fused, one thread computes. The batch
    stays the same and is in memory already, so that nothing is spent on loading data.
    """

    def __init__(
        self,
        torch: Any,
        widths: Sequence[int],
        inputs: npt.NDArray[np.float32],
        targets: npt.NDArray[np.int64],
        bucket_mb: int,
    ) -> None:
        layers: list[Any] = []
        for width, next_width in pairwise(widths):
            layers += [torch.nn.Linear(width, next_width), torch.nn.ReLU()]
        self._model = torch.nn.parallel.DistributedDataParallel(
            torch.nn.Sequential(*layers[:-1]),
            bucket_cap_mb=bucket_mb,
            gradient_as_bucket_view=True,
            static_graph=True,
        )
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=1e-3, fused=True)
        self._from_numpy = torch.from_numpy
        self._inputs, self._targets = torch.from_numpy(inputs), torch.from_numpy(targets)
        self._loss = torch.nn.functional.cross_entropy

    def steps(self, count: int) -> float:
        """Train for `count` steps; the loss of this rank in the last one. Collective."""
        loss = None
        for _ in range(count):
            self._optimizer.zero_grad()
            loss = self._loss(self._model(self._inputs), self._targets)
            loss.backward()
            self._optimizer.step()
        return float("nan") if loss is None else float(loss.item())

    def state(self) -> dict[str, Array]:
        """Copies of what a checkpoint has: parameters, and the optimizer's state once there has been a step."""
        tensors = {f"model.{name}": tensor for name, tensor in self._model.module.state_dict().items()}
        for index, fields in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in fields.items()}
        return {name: tensor.numpy().copy() for name, tensor in tensors.items()}

    def load(self, arrays: dict[str, Array]) -> None:
        """Go on from what `state` gave after a step or more."""
        model: dict[str, Any] = {}
        fields: dict[int, dict[str, Any]] = {}
        for name, array in arrays.items():
            tensor = self._from_numpy(array.copy())
            kind, _, rest = name.partition(".")
            if kind == "model":
                model[rest] = tensor
            else:
                index, _, field = rest.partition(".")
                fields.setdefault(int(index), {})[field] = tensor
        self._model.module.load_state_dict(model)
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": fields})


class Rendezvous:
    """Where the ranks of a process group find each other: rank 0 listens, on `port` of `host`, for as long as it lives.

    `port` is 0 on the other ranks.
    """

    def __init__(self, host: str, rank: int, world_size: int) -> None:
        import torch.distributed as distributed

        self._distributed: Any = distributed
        self._rank, self._world_size = rank, world_size
        self._store = distributed.TCPStore(host, 0, world_size, True, _TIMEOUT, False) if rank == 0 else None
        self.port: int = self._store.port if self._store else 0

    @contextmanager
    def join(self, host: str, port: int) -> Iterator[None]:
        """The default process group, over gloo, for as long as the block lasts. Collective."""
        store = self._store or self._distributed.TCPStore(host, port, self._world_size, False, _TIMEOUT, False)
        self._distributed.init_process_group(
            "gloo", store=store, rank=self._rank, world_size=self._world_size, timeout=_TIMEOUT
        )
        try:
            yield
        finally:
            self._distributed.destroy_process_group()


def find_torch() -> Any:
    """PyTorch, with one thread, or None if it is not there with gloo."""
    try:
        import torch
        import torch.distributed as distributed
    except ImportError:
        return None
    if not (distributed.is_available() and distributed.is_gloo_available()):
        return None
    torch.set_num_threads(1)
    return torch


@contextmanager
def launched_group(num_restarts: int) -> Iterator[tuple[TorchPeer, int]]:
    """The group of the workers that `torchrun` has started together, and this one's rank. Collective.

    `num_restarts`: how often it has started them again.

    Raises InputError without PyTorch and gloo.
    """
    torch = find_torch()
    if torch is None:
        raise InputError("this worker needs PyTorch with gloo: pip install torch, the CPU build")
    import torch.distributed as distributed
    from torch.distributed.rendezvous import rendezvous

    store, rank, world_size = next(rendezvous("env://", timeout=_TIMEOUT))
    # torchrun keeps the store over its restarts, and with it where dead workers listened: gloo would connect to those.
    store = distributed.PrefixStore(f"start {num_restarts}", store)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT)
    try:
        yield TorchPeer(torch), rank
    finally:
        distributed.destroy_process_group()


@contextmanager
def torch_peer(communicator: Communicator, nodes: Nodes) -> Iterator[TorchPeer | None]:
    """PyTorch's group for as long as the block lasts, or None unless all ranks have PyTorch with gloo. Collective."""
    torch = find_torch()
    is_there = json.dumps(torch is not None).encode()
    if not all(json.loads(data) for data in communicator.allgather_bytes(is_there)):
        yield None
        return
    host = "127.0.0.1" if len(nodes.ranks) == 1 else socket.gethostname()
    rendezvous = Rendezvous(host, communicator.rank, communicator.size)
    address = json.dumps([host, rendezvous.port]).encode()
    with rendezvous.join(*json.loads(communicator.allgather_bytes(address)[0])):
        yield TorchPeer(torch)
    # What rank 0 listens with must not go before the others have left.
    communicator.barrier()
