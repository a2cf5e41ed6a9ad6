"""Whether gradients are exchanged between nodes in buckets while backward goes on, and how large these are.

It pays where links are slow beside the processors, which is found out by sending a few messages at the start. All ranks
decide alike. Knows neither models nor recipes.
"""

from __future__ import annotations

import time
from typing import Literal, NamedTuple

import numpy as np

from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.nodes import Nodes

Overlap = Literal["auto", "on", "off"]

# Handing buckets over to a thread and back costs some of this; what takes no longer is not worth it.
MIN_TRANSFER_SECONDS = 5e-3
MIN_BUCKET_BYTES = 256 * 1024
MAX_BUCKET_BYTES = 16 * 1024 * 1024
# A bucket should take this many times as long as a message takes that carries nothing.
_LATENCIES_PER_BUCKET = 10
_PROBE_BYTES = 8 * 1024 * 1024
# The fastest of so many counts: what disturbs a message is not the link.
_NUM_PROBES = 5


class BucketChoice(NamedTuple):
    """What was decided. `num_elements` of a bucket; 0: whole slices are exchanged after the step has been agreed on.

    `in_background`: whether buckets are exchanged while backward goes on. `line`: the same for people.
    """

    num_elements: int = 0
    in_background: bool = False
    line: str = ""


NO_BUCKETS = BucketChoice()


def choose_buckets(
    communicator: Communicator,
    nodes: Nodes,
    num_elements: int,
    itemsize: int,
    overlap: Overlap = "auto",
    bucket_bytes: int = 0,
    *,
    is_compressed: bool = False,
) -> BucketChoice:
    """Decide for vectors of `num_elements`. Collective; the same on all ranks.

    `is_compressed`: whether they are sent as half as many bytes, which goes by buckets, whenever they are exchanged.
    `bucket_bytes`: how large a bucket is to be; 0: so that it takes some ten times as long as an empty message.
    """
    if len(nodes.ranks) == 1:
        return NO_BUCKETS
    late = BucketChoice(max(1, MAX_BUCKET_BYTES // itemsize) if is_compressed else 0)
    where = f"gradients between {len(nodes.ranks)} nodes"
    if overlap == "off":
        return late._replace(line=f"{where}: exchanged after backward, as exchange.overlap says")
    if not communicator.allows_threads:
        return late._replace(line=f"{where}: exchanged after backward, since this MPI library does not allow threads")
    # What is sent of each.
    itemsize_sent = 2 if is_compressed else itemsize
    num_bytes = num_elements * itemsize_sent
    latency_seconds = _measure(communicator, nodes, 0)
    probed_bytes = min(num_bytes, _PROBE_BYTES)
    # There and back.
    transfer_seconds = 2 * _measure(communicator, nodes, probed_bytes) * num_bytes / probed_bytes
    measured = f"{num_bytes / 1e6:.3g} MB in {1e3 * transfer_seconds:.3g} ms, measured"
    if overlap == "auto" and transfer_seconds < MIN_TRANSFER_SECONDS:
        return late._replace(line=f"{where}: exchanged after backward ({measured})")
    chosen = bucket_bytes or _bucket_bytes(num_bytes, latency_seconds, transfer_seconds)
    return BucketChoice(
        max(1, chosen // itemsize_sent),
        in_background=True,
        line=f"{where}: exchanged during backward, in buckets of {chosen / 1024:.0f} KiB ({measured})",
    )


def _bucket_bytes(num_bytes: int, latency_seconds: float, transfer_seconds: float) -> int:
    wanted = _LATENCIES_PER_BUCKET * latency_seconds * num_bytes / transfer_seconds
    return int(min(max(wanted, MIN_BUCKET_BYTES), MAX_BUCKET_BYTES))


def _measure(communicator: Communicator, nodes: Nodes, num_bytes: int) -> float:
    """Seconds until each rank has sent its part of a vector of `num_bytes` to the other nodes; of the slowest rank."""
    own = nodes.node_of_rank[communicator.rank]
    others = [rank for rank in range(communicator.size) if nodes.node_of_rank[rank] != own]
    # Each node sends what others update once, whatever the number of its ranks.
    lengths = [1 + num_bytes // communicator.size // len(nodes.ranks[number]) for number in nodes.node_of_rank]
    sends = [(rank, np.zeros(lengths[communicator.rank], np.uint8)) for rank in others]
    receives = [(rank, np.empty(lengths[rank], np.uint8)) for rank in others]
    seconds = np.zeros((communicator.size, 1))
    fastest = np.full(1, np.inf)
    for _ in range(_NUM_PROBES):
        communicator.barrier()
        began = time.perf_counter()
        communicator.exchange(sends, receives)
        fastest[0] = min(fastest[0], time.perf_counter() - began)
    communicator.allgather(fastest, seconds)
    return float(seconds.max())
