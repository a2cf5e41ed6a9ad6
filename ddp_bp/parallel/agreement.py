"""Agreement before the step: every rank sees the same small table and takes the same branch.

A rank never raises alone: it writes what happened to it into its row, and all ranks act on all rows. Rows are of fixed
size, so that the agreement is one small all-gather. The table also carries each shard's loss, because a loss is summed
along the same tree as the gradients. Knows nothing of how a shard was computed.

A table is a few numbers, for which Python's own are several times as fast as NumPy's arrays.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

import numpy as np

from ddp_bp.errors import DisagreementError
from ddp_bp.parallel.communicator import Array, Communicator
from ddp_bp.parallel.membership import shard_run
from ddp_bp.parallel.tree import tree_sum_of_numbers

# Step, layout, status, requests, squared norm.
_HEAD = struct.Struct("<qQqqd")
# Of each shard: loss, weight, correct, digests of the ids and of the result, whether something is not finite.
_SHARD = struct.Struct("<dddQQq")


class Status(IntEnum):
    """What a rank has to say about its part of a step."""

    READY = 0
    FAILED = 1


class Verdict(NamedTuple):
    """What all ranks agreed on.

    `loss`, `weight` and `correct` are sums over all shards along the reduction tree; `shard_losses`, `shard_digests`
    (of sample ids), `shard_results` (of what was computed) and `owners` (the ranks that did) have one entry per shard;
    `requests` is the bitwise or of what the ranks asked for; `squared_norm` is the sum of the ranks' entries.
    """

    failed_ranks: tuple[int, ...]
    nonfinite_shards: tuple[int, ...]
    requests: int
    loss: float
    weight: float
    correct: float
    squared_norm: float
    shard_losses: tuple[float, ...]
    shard_digests: tuple[int, ...]
    shard_results: tuple[int, ...]
    owners: tuple[int, ...]


class Agreement:
    """One all-gather of a fixed-size row a rank. Construct and call on all ranks alike."""

    def __init__(self, communicator: Communicator, num_shards: int, layout: int, row: Array | None = None) -> None:
        """`layout` is a 64-bit fingerprint of what must be equal on all ranks: parameters, plan, versions.

        `row`: memory for this rank's row, of `row_size` bytes, that others can look into when it has died.
        """
        self._communicator = communicator
        self._num_shards = num_shards
        self._layout = layout
        lengths = [len(shard_run(num_shards, communicator.size, rank)) for rank in range(communicator.size)]
        row_bytes = row_size(num_shards, communicator.size)
        self._sent = np.zeros(row_bytes, np.uint8) if row is None else row
        self._table = bytearray(row_bytes * communicator.size)
        # The same memory, for packing and as communicators take it.
        self._row = self._sent.data
        self._received = np.frombuffer(self._table, np.uint8).reshape(communicator.size, row_bytes)
        self._blank = bytes(row_bytes)
        starts = range(0, len(self._table), row_bytes)
        self._heads = tuple(starts)
        self._owners = tuple(rank for rank, length in enumerate(lengths) for _ in range(length))
        self._shards = tuple(
            start + _HEAD.size + _SHARD.size * index
            for start, length in zip(starts, lengths, strict=True)
            for index in range(length)
        )

    def reset(self) -> None:
        """Begin a new row: ready, nothing asked for, no shard computed."""
        self._row[:] = self._blank

    def report_shard(
        self,
        index: int,
        loss: float,
        weight: float,
        correct: float,
        ids_digest: int,
        result_digest: int = 0,
        *,
        finite: bool,
    ) -> None:
        """Enter the `index`-th shard of this rank's run: summed loss, the count it is averaged over, hits, digests."""
        place = _HEAD.size + _SHARD.size * index
        _SHARD.pack_into(self._row, place, loss, weight, correct, ids_digest, result_digest, not finite)

    def agree(
        self, step: int, *, status: Status = Status.READY, requests: int = 0, squared_norm: float = 0.0
    ) -> Verdict:
        """`prepare` and `conclude`. Collective."""
        self.prepare(step, status=status, requests=requests, squared_norm=squared_norm)
        return self.conclude()

    def prepare(
        self, step: int, *, status: Status = Status.READY, requests: int = 0, squared_norm: float = 0.0
    ) -> None:
        """Complete this rank's row. Not collective."""
        _HEAD.pack_into(self._row, 0, step, self._layout, status, requests, squared_norm)

    def conclude(self) -> Verdict:
        """Exchange rows. Collective.

        Raises:
            DisagreementError: on every rank alike, if the ranks are not at the same step with the same layout.
        """
        self._communicator.allgather(self._sent, self._received)
        table = self._table
        heads = [_HEAD.unpack_from(table, place) for place in self._heads]
        return _verdict(heads, [_SHARD.unpack_from(table, place) for place in self._shards], self._owners)


def row_size(num_shards: int, world_size: int) -> int:
    """Bytes of one rank's row."""
    longest = max(len(shard_run(num_shards, world_size, rank)) for rank in range(world_size))
    return _HEAD.size + _SHARD.size * longest


class Account(NamedTuple):
    """What is known of some shards of a step and of the rank that computed them, as numbers that can be sent."""

    owner: int
    head: tuple[int, int, int, int, float]
    shards: dict[int, tuple[float, float, float, int, int, int]]


def account_of(row: bytes, owner: int, shards: Sequence[int]) -> Account:
    """What a rank had written into its row, of which `shards` are the run."""
    places = range(_HEAD.size, len(row), _SHARD.size)
    entries = {shard: _SHARD.unpack_from(row, place) for shard, place in zip(shards, places, strict=False)}
    return Account(owner, _HEAD.unpack_from(row), entries)


def verdict_of(accounts: Sequence[Account]) -> Verdict:
    """What the ranks would have agreed on, from accounts that together have every shard once.

    Raises DisagreementError as `Agreement.conclude` does.
    """
    found = sorted((shard, account.owner, entry) for account in accounts for shard, entry in account.shards.items())
    return _verdict(
        [account.head for account in accounts],
        [entry for _, _, entry in found],
        tuple(owner for _, owner, _ in found),
        ranks=[account.owner for account in accounts],
    )


def _verdict(
    heads: Sequence[tuple[Any, ...]],
    shards: Sequence[tuple[Any, ...]],
    owners: tuple[int, ...],
    ranks: Sequence[int] | None = None,
) -> Verdict:
    """`ranks`: whose the heads are, if not those of all ranks in their order."""
    steps, layouts, statuses, all_requests, squared_norms = zip(*heads, strict=True)
    _check_alike("step", steps)
    _check_alike("parameter layout or settings", layouts)
    losses, weights, corrects, digests, results, nonfinite = zip(*shards, strict=True)
    failed = _places(statuses, Status.FAILED)
    return Verdict(
        failed_ranks=failed if ranks is None else tuple(ranks[place] for place in failed),
        nonfinite_shards=_places(nonfinite, True),
        requests=reduce(or_, all_requests),
        loss=tree_sum_of_numbers(losses),
        weight=tree_sum_of_numbers(weights),
        correct=tree_sum_of_numbers(corrects),
        squared_norm=tree_sum_of_numbers(squared_norms),
        shard_losses=losses,
        shard_digests=digests,
        shard_results=results,
        owners=owners,
    )


def _places(values: Sequence[int], wanted: int) -> tuple[int, ...]:
    if wanted not in values:
        return ()
    return tuple(place for place, value in enumerate(values) if value == wanted)


def check_layout(communicator: Communicator, layout: int) -> None:
    """Raise DisagreementError on every rank alike unless all have the same 64-bit `layout`. Collective."""
    layouts = np.empty((communicator.size, 1), np.uint64)
    communicator.allgather(np.array([layout], np.uint64), layouts)
    _check_alike("parameter layout or settings", layouts[:, 0].tolist())


def _check_alike(meaning: str, values: Sequence[int]) -> None:
    if values.count(values[0]) != len(values):
        got = ", ".join(f"rank {rank}: {value:#x}" for rank, value in enumerate(values))
        raise DisagreementError(
            f"ranks differ in {meaning}: expected one value on all, got {got}. "
            "All ranks must run the same version of ddp_bp, the same recipe and the same model code"
        )
