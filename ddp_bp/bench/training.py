"""`ddp-bp bench training`: whole training steps, beside PyTorch's DistributedDataParallel.

Blocks of steps take turns on the same cores, PyTorch's in processes of its own. It has every bucket size once, and the
one that came out best counts. That a block of it is ordered through a pipe takes less than a thousandth of the block.

The matrix products of a step, alone, take their turn as well: they say how much of our time is the BLAS's, and so how
much faster than PyTorch we could be with nothing else to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import msgspec
import numpy as np

from ddp_bp.bench.models import MODELS, BenchModel, OurTraining
from ddp_bp.bench.products import both_ways, of_the_faster
from ddp_bp.bench.race import Seconds, median_ratio, race
from ddp_bp.bench.torch_ranks import TorchRanks, torch_ranks
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.nodes import find_nodes

OURS = "ddp_bp"
_PRODUCTS = ("products", "products the other way")
BUCKETS_MB = (1, 25, 100)
_NUM_WARM_UP_BLOCKS = 2


class DdpResult(msgspec.Struct):
    """PyTorch's steps at its best bucket size; `speedup` is its time over ours, the median block by block."""

    bucket_mb: int
    seconds_per_step: float
    speedup: float


class ProductsResult(msgspec.Struct):
    """The matrix products of a rank's step without anything else: medians over blocks.

    `share`: of the time of our step. `ddp_ratio`: the time of PyTorch's step over theirs, which a step of ours that did
    nothing else would be as many times as fast.
    """

    seconds_per_step: float
    operations_per_second: float
    share: float
    ddp_ratio: float | None


class ModelResult(msgspec.Struct):
    """One model: medians over blocks."""

    name: str
    description: str
    num_parameters: int
    seconds_per_step: float
    products: ProductsResult
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
    products = both_ways(model)
    contestants = {OURS: _block(OurTraining(communicator, model).steps, count)}
    contestants |= {key: _block(one.steps, count) for key, one in zip(_PRODUCTS, products, strict=True)}
    if peer is not None:
        for bucket_mb in BUCKETS_MB:
            peer.build(model, bucket_mb)
            contestants[str(bucket_mb)] = _block(partial(peer.steps, bucket_mb), count)
    times = race(communicator, contestants, num_blocks, _NUM_WARM_UP_BLOCKS)
    own = times.pop(OURS)
    least = of_the_faster([times.pop(key) for key in _PRODUCTS])
    ddp, ddp_ratio = None, None
    if times:
        ddp = best_ddp({int(bucket): seconds for bucket, seconds in times.items()}, own, count)
        ddp_ratio = median_ratio(times[str(ddp.bucket_mb)], least)
    seconds_per_step, products_seconds = (float(np.median(seconds)) / count for seconds in (own, least))
    return ModelResult(
        name,
        model.description,
        num_parameters(model),
        seconds_per_step,
        ProductsResult(
            products_seconds,
            products[0].num_operations / products_seconds,
            median_ratio(least, own),
            ddp_ratio,
        ),
        ddp,
    )


def _block(steps: Callable[[int], object], count: int) -> Callable[[int], object]:
    """A contestant that takes `count` steps."""
    return lambda _: steps(count)
