"""`ddp-bp bench memory`: what weights, gradients and optimizer state take on a node, beside PyTorch DDP.

Both train in turn in the same processes, a multilayer perceptron under Adam with so few samples that activations hardly
count. What the processes take before a model is built, interpreter and libraries with what a first small model makes
them load, is subtracted from both.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable

import msgspec

from ddp_bp.bench.machine import proportional_set_bytes
from ddp_bp.bench.models import BenchModel, OurTraining, made_up_samples
from ddp_bp.bench.torch_peer import TorchPeer, torch_peer
from ddp_bp.bench.training import num_parameters
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.nodes import Nodes, find_nodes

Build = Callable[[BenchModel], Callable[[int], float]]

OURS, DDP = "ddp_bp", "PyTorch DDP"
_NUM_LAYERS = 4
_BATCH_PER_RANK = 4
_NUM_STEPS = 3
_BUCKET_MB = 25
_SMALL = BenchModel((16, 16, 16), _BATCH_PER_RANK, 1)


class MemoryResult(msgspec.Struct):
    """Bytes on the node where they are most, after a few steps, less those before the model was built."""

    name: str
    node_bytes: int
    bytes_per_parameter: float
    before_bytes: int


class MemoryReport(msgspec.Struct):
    """All that one run found out. `ratio` is ours over PyTorch's; that and `torch` are None without PyTorch."""

    world_size: int
    num_nodes: int
    mpi: str
    torch: str | None
    description: str
    num_parameters: int
    results: list[MemoryResult]
    ratio: float | None


def model_of(count: int) -> BenchModel:
    """A network of equally wide layers with about `count` parameters, at least 8."""
    width = max(1, round((math.sqrt(1 + 4 * count / _NUM_LAYERS) - 1) / 2))
    return BenchModel((width,) * (_NUM_LAYERS + 1), _BATCH_PER_RANK, 1)


def measure_memory(communicator: Communicator, count: int) -> MemoryReport:
    """Measure with about `count` parameters. Collective; the same on all ranks."""
    nodes, model = find_nodes(communicator), model_of(count)
    total = num_parameters(model)
    with torch_peer(communicator, nodes) as peer:

        def ours(model: BenchModel) -> Callable[[int], float]:
            return OurTraining(communicator, model).steps

        builders: dict[str, Build] = {OURS: ours}
        if peer is not None:
            builders[DDP] = _ddp(peer)
        results = []
        for build in builders.values():
            _bytes_of(communicator, nodes, build, _SMALL)
        for name, build in builders.items():
            before, after = _bytes_of(communicator, nodes, build, model)
            results.append(MemoryResult(name, after - before, (after - before) / total, before))
        version = peer.version if peer else None
    ratio = results[0].node_bytes / results[1].node_bytes if len(results) > 1 else None
    return MemoryReport(
        world_size=communicator.size,
        num_nodes=len(nodes.ranks),
        mpi=communicator.describe(),
        torch=version,
        description=model.description,
        num_parameters=total,
        results=results,
        ratio=ratio,
    )


def _ddp(peer: TorchPeer) -> Build:
    def build(model: BenchModel) -> Callable[[int], float]:
        return peer.ddp(model.widths, *made_up_samples(model, model.batch_per_rank), _BUCKET_MB).steps

    return build


def _bytes_of(
    communicator: Communicator,
    nodes: Nodes,
    build: Build,
    model: BenchModel,
) -> tuple[int, int]:
    """(before, after) bytes of all processes of the node where they are most. Collective."""
    gc.collect()
    communicator.barrier()
    before = proportional_set_bytes()
    communicator.barrier()
    steps = build(model)
    steps(_NUM_STEPS)
    communicator.barrier()
    after = proportional_set_bytes()
    # Nobody lets go of shared memory before all have looked.
    communicator.barrier()
    del steps
    gc.collect()
    everyone = [json.loads(data) for data in communicator.allgather_bytes(json.dumps([before, after]).encode())]
    by_node = [[sum(everyone[rank][which] for rank in ranks) for which in (0, 1)] for ranks in nodes.ranks]
    most = max(by_node, key=lambda pair: pair[1] - pair[0])
    return most[0], most[1]
