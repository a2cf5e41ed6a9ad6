"""`ddp-bp bench shards`: what it costs to cut the same batch into more shards than there are ranks.

More shards let more ranks take part later with the same bits. Products are smaller then, and a rank adds up the
gradients of its shards. All numbers of shards take turns within one run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from ddp_bp.bench.models import MODELS, BenchModel, OurTraining
from ddp_bp.bench.race import median_ratio, race
from ddp_bp.parallel.communicator import Communicator

_NUM_WARM_UP_BLOCKS = 2


class ShardsResult(msgspec.Struct):
    """Medians over blocks. `ratio`: the time of a step over that with one shard a rank, the median block by block."""

    num_shards: int
    seconds_per_step: float
    ratio: float


class ModelShards(msgspec.Struct):
    """One model at each number of shards."""

    name: str
    description: str
    shards: list[ShardsResult]


class ShardsReport(msgspec.Struct):
    """All that one run found out."""

    world_size: int
    blocks: int
    mpi: str
    models: list[ModelShards]


def measure_shards(
    communicator: Communicator, names: Sequence[str], shards_per_rank: Sequence[int], num_blocks: int
) -> ShardsReport:
    """Measure the models of these names with one shard a rank and with each other number. Collective; the same on all
    ranks."""
    numbers = sorted({1, *shards_per_rank})
    models = [
        ModelShards(name, MODELS[name].description, _measure_model(communicator, MODELS[name], numbers, num_blocks))
        for name in names
    ]
    return ShardsReport(communicator.size, num_blocks, communicator.describe(), models)


def _measure_model(
    communicator: Communicator, model: BenchModel, numbers: Sequence[int], num_blocks: int
) -> list[ShardsResult]:
    contestants = {
        str(number): _block(OurTraining(communicator, model, number), model.steps_per_block) for number in numbers
    }
    times = race(communicator, contestants, num_blocks, _NUM_WARM_UP_BLOCKS)
    return [
        ShardsResult(
            number * communicator.size,
            float(np.median(times[str(number)])) / model.steps_per_block,
            median_ratio(times[str(number)], times["1"]),
        )
        for number in numbers
    ]


def _block(training: OurTraining, count: int) -> Callable[[int], float]:
    """A contestant that takes `count` steps."""
    return lambda _: training.steps(count)
