"""`ddp-bp bench shards`: what it costs to cut the same batch into more shards than there are ranks.

More shards let more ranks take part later with the same bits. Products are smaller then, and a rank adds up the
gradients of its shards. All numbers of shards take turns within one run, and so do the products alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from ddp_bp.bench.models import MODELS, BenchModel, OurTraining
from ddp_bp.bench.products import both_ways, of_the_faster
from ddp_bp.bench.race import median_ratio, race
from ddp_bp.parallel.communicator import Communicator

_NUM_WARM_UP_BLOCKS = 2


class ShardsResult(msgspec.Struct):
    """Medians over blocks. `ratio`: the time of a step over that with one shard a rank, the median block by block.

    `products_ratio`: the same of the matrix products of a step, without anything else.
    """

    num_shards: int
    seconds_per_step: float
    ratio: float
    products_ratio: float


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
    count = model.steps_per_block
    contestants = {_ours(number): _block(OurTraining(communicator, model, number).steps, count) for number in numbers}
    for number in numbers:
        for key, products in zip(_products(number), both_ways(model, number), strict=True):
            contestants[key] = _block(products.steps, count)
    times = race(communicator, contestants, num_blocks, _NUM_WARM_UP_BLOCKS)
    products_times = {number: of_the_faster([times[key] for key in _products(number)]) for number in numbers}
    return [
        ShardsResult(
            number * communicator.size,
            float(np.median(times[_ours(number)])) / count,
            median_ratio(times[_ours(number)], times[_ours(1)]),
            median_ratio(products_times[number], products_times[1]),
        )
        for number in numbers
    ]


def _ours(number: int) -> str:
    return f"steps of {number} shards a rank"


def _products(number: int) -> tuple[str, str]:
    return f"products of {number} shards a rank", f"products of {number} shards a rank the other way"


def _block(steps: Callable[[int], object], count: int) -> Callable[[int], object]:
    """A contestant that takes `count` steps."""
    return lambda _: steps(count)
