"""`ddp-bp bench exchange`: how long it takes until every rank can read the sum of a vector over all ranks.

Ours, MPI's and gloo's take turns on rings of vectors that together are larger than the last-level cache. A ring has no
more members than there are calls; then copying, which is measured as well, clears the cache before the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import msgspec
import numpy as np

from ddp_bp.bench.machine import Copying
from ddp_bp.bench.race import Seconds, median_ratio, race
from ddp_bp.bench.summing import GlooAllreduce, MpiAllreduce, OurExchange, Summing
from ddp_bp.bench.torch_peer import TorchPeer, torch_peer
from ddp_bp.bench.update import build_update, bytes_moved
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.nodes import Nodes, find_nodes
from ddp_bp.worker.failures import together

OURS, MPI = "ddp_bp", "MPI"
LIBRARY_CHOICE = "its own choice"
_FLOAT32_BYTES = 4
_NUM_WARM_UP = 5
_NUM_COPIES = 5


class Contender(msgspec.Struct):
    """One way to sum, at one size. `seconds` is the median; `ratio` our time over its, the median call by call.

    `bus_bytes_per_second` is what nccl-tests call bus bandwidth: 2 (W - 1) / W * bytes / seconds, for each rank. Its
    share of the bandwidth of copying counts all ranks: share = W * bus / copy.
    """

    name: str
    seconds: float
    ratio: float
    bus_bytes_per_second: float
    copy_share: float


class SizeResult(msgspec.Struct):
    """All contenders at vectors of `num_bytes`, of which `ring` take turns; MPI has the algorithm of that name."""

    num_bytes: int
    ring: int
    algorithm: str
    contenders: list[Contender]


class UpdateResult(msgspec.Struct):
    """Reduce and Adam: `copy_share` is the median, call by call, of bytes moved per second over that of a copy."""

    num_parameters: int
    bytes_moved: int
    seconds: float
    copy_share: float


class ExchangeReport(msgspec.Struct):
    """All that one run found out. Copying counts bytes read and bytes written, of all ranks together.

    `update`: None where it was not asked for.
    """

    world_size: int
    num_nodes: int
    repeats: int
    mpi: str
    torch: str | None
    cache_bytes: int
    copy_bytes_per_second: float
    sizes: list[SizeResult]
    update: UpdateResult | None


def measure_exchange(
    communicator: Communicator,
    sizes_bytes: Sequence[int],
    num_parameters: int,
    num_repeats: int,
    cache_bytes: int,
    *,
    algorithm: str = LIBRARY_CHOICE,
    only_mpi: bool = False,
) -> ExchangeReport:
    """Measure all sizes, then reduce and Adam on `num_parameters` parameters. Collective; the same on all ranks.

    Args:
        num_parameters: 0 leaves reduce and Adam out.
        algorithm: what MPI was started with, for the report.
        only_mpi: measure neither ours nor gloo's.

    Raises:
        DistributedError: a way to sum gives a wrong sum, on all ranks alike (as RemoteError where it was right).
    """
    nodes = find_nodes(communicator)
    copying = Copying(communicator, _ranks_per_node(nodes), cache_bytes)
    copies: list[Seconds] = []
    times: list[tuple[int, dict[str, Seconds]]] = []
    with nullcontext() if only_mpi else torch_peer(communicator, nodes) as peer:
        for num_bytes in sizes_bytes:
            ways, ring = _ways(communicator, nodes, peer, num_bytes, num_repeats, cache_bytes)
            if only_mpi:
                ways = {MPI: ways[MPI]}
            for way in ways.values():
                together(communicator, partial(way.verify, communicator))
            copies.append(copying.seconds(_NUM_COPIES))
            contestants = {name: way.run for name, way in ways.items()}
            times.append((ring, race(communicator, contestants, num_repeats, _NUM_WARM_UP)))
        version = peer.version if peer else None
    update = None
    if num_parameters:
        update, more_copies = _measure_update(communicator, nodes, copying, num_parameters, num_repeats)
        copies.append(more_copies)
    copy_rate = float(copying.num_bytes / np.median(np.concatenate(copies)))
    return ExchangeReport(
        world_size=communicator.size,
        num_nodes=len(nodes.ranks),
        repeats=num_repeats,
        mpi=communicator.describe(),
        torch=version,
        cache_bytes=cache_bytes,
        copy_bytes_per_second=copy_rate,
        sizes=[
            SizeResult(num_bytes, ring, algorithm, contenders(num_bytes, communicator.size, seconds, copy_rate))
            for num_bytes, (ring, seconds) in zip(sizes_bytes, times, strict=True)
        ],
        update=update,
    )


def contenders(num_bytes: int, world_size: int, times: dict[str, Seconds], copy_rate: float) -> list[Contender]:
    """What is shown of the seconds (repeats,) that each way took to sum `num_bytes`. Without ours, ratios are 1."""
    found = []
    for name, seconds in times.items():
        median = float(np.median(seconds))
        bus = 2 * (world_size - 1) / world_size * num_bytes / median
        ratio = median_ratio(times.get(OURS, seconds), seconds)
        found.append(Contender(name, median, ratio, bus, world_size * bus / copy_rate))
    return found


def ring_length(member_bytes: int, num_calls: int, cache_bytes: int) -> int:
    """How many members make a ring larger than the cache, of which each takes `member_bytes`; at most one a call."""
    return max(1, min(num_calls, 1 + -(-cache_bytes // member_bytes)))


def _ranks_per_node(nodes: Nodes) -> int:
    """Those of the node with the fewest, where least is moved through the cache."""
    return min(map(len, nodes.ranks))


def _ways(
    communicator: Communicator,
    nodes: Nodes,
    peer: TorchPeer | None,
    num_bytes: int,
    num_repeats: int,
    cache_bytes: int,
) -> tuple[dict[str, Summing], int]:
    """All ways to sum, and the length of their rings. Collective."""
    num_vectors = _ranks_per_node(nodes) * (2 + (peer is not None))
    ring = ring_length(num_vectors * num_bytes, _NUM_WARM_UP + num_repeats, cache_bytes)
    num_elements = num_bytes // _FLOAT32_BYTES
    ways: dict[str, Summing] = {
        OURS: OurExchange(communicator, nodes, num_elements, ring),
        MPI: MpiAllreduce(communicator, num_elements, ring),
    }
    if peer is not None:
        ways["gloo"] = GlooAllreduce(peer, num_elements, ring)
    return ways, ring


def _measure_update(
    communicator: Communicator, nodes: Nodes, copying: Copying, num_parameters: int, num_repeats: int
) -> tuple[UpdateResult, Seconds]:
    """Reduce and Adam in turns with copies, which clear the cache; also the seconds of these. Collective."""
    update, _ = build_update(communicator, nodes, num_parameters)

    def step(number: int) -> None:
        update.take_step(number, communicator.size, 1)

    times = race(communicator, {OURS: step, "copy": copying.copy}, num_repeats, _NUM_WARM_UP)
    num_bytes = bytes_moved(num_parameters, communicator.size)
    share = num_bytes / copying.num_bytes * median_ratio(times["copy"], times[OURS])
    return UpdateResult(num_parameters, num_bytes, float(np.median(times[OURS])), share), times["copy"]
