"""`ddp-bp bench training`: whole training steps, beside PyTorch's DistributedDataParallel.

Blocks of steps take turns on the same cores, PyTorch's in processes of its own. It has every bucket size once, and the
one that came out best counts. That a block of it is ordered through a pipe takes less than a thousandth of the block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import msgspec
import numpy as np

from ddp_bp.bench.models import MODELS, BenchModel, OurTraining
from ddp_bp.bench.race import Seconds, median_ratio, race
from ddp_bp.bench.torch_ranks import TorchRanks, torch_ranks
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.nodes import find_nodes

OURS = "ddp_bp"
BUCKETS_MB = (1, 25, 100)
_NUM_WARM_UP_BLOCKS = 2


class DdpResult(msgspec.Struct):
    """PyTorch's steps at its best bucket size; `speedup` is its time over ours, the median block by block."""

    bucket_mb: int
    seconds_per_step: float
    speedup: float


class ModelResult(msgspec.Struct):
    """One model: medians over blocks."""

    name: str
    description: str
    num_parameters: int
    seconds_per_step: float
    ddp: DdpResult | None


class TrainingReport(msgspec.Struct):
    """All that one run found out; `torch` is PyTorch's version, None without it."""

    world_size: int
    blocks: int
    mpi: str
    torch: str | None
    models: list[ModelResult]


def measure_training(communicator: Communicator, names: Sequence[str], num_blocks: int) -> TrainingReport:
    """Measure the models of these names. Collective; the same on all ranks."""
    with torch_ranks(communicator, find_nodes(communicator)) as peer:
        results = [_measure_model(communicator, peer, name, MODELS[name], num_blocks) for name in names]
        version = peer.version if peer else None
    return TrainingReport(communicator.size, num_blocks, communicator.describe(), version, results)


def best_ddp(times: dict[int, Seconds], ours: Seconds, steps_per_block: int) -> DdpResult:
    """The bucket size with the smallest median of `times[bucket_mb]` (blocks,), against `ours` (blocks,)."""
    bucket_mb = min(times, key=lambda bucket: float(np.median(times[bucket])))
    seconds = times[bucket_mb]
    return DdpResult(bucket_mb, float(np.median(seconds)) / steps_per_block, median_ratio(seconds, ours))


def num_parameters(model: BenchModel) -> int:
    """Weights and biases of all layers."""
    return sum(width * next_width + next_width for width, next_width in pairwise(model.widths))


def _measure_model(
    communicator: Communicator, peer: TorchRanks | None, name: str, model: BenchModel, num_blocks: int
) -> ModelResult:
    count = model.steps_per_block
    contestants = {OURS: _block(OurTraining(communicator, model).steps, count)}
    if peer is not None:
        for bucket_mb in BUCKETS_MB:
            peer.build(model, bucket_mb)
            contestants[str(bucket_mb)] = _block(partial(peer.steps, bucket_mb), count)
    times = race(communicator, contestants, num_blocks, _NUM_WARM_UP_BLOCKS)
    own = times.pop(OURS)
    ddp = best_ddp({int(bucket): seconds for bucket, seconds in times.items()}, own, count) if times else None
    return ModelResult(name, model.description, num_parameters(model), float(np.median(own)) / count, ddp)


def _block(steps: Callable[[int], float], count: int) -> Callable[[int], float]:
    """A contestant that takes `count` steps."""
    return lambda _: steps(count)
