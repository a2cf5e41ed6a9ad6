"""Agreement before the step: every rank sees the same small table and takes the same branch.

A rank never raises alone: it writes what happened to it into its row, and all ranks act on all rows. Rows are of fixed
size, so that the agreement is one small all-gather. The table also carries each shard's loss, because a loss is summed
along the same tree as the gradients. Knows nothing of how a shard was computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from ddp_bp.errors import DisagreementError
from ddp_bp.parallel.communicator import Communicator, as_bytes
from ddp_bp.parallel.membership import shard_run
from ddp_bp.parallel.tree import tree_sum


class Status(IntEnum):
    """What a rank has to say about its part of a step."""

    READY = 0
    FAILED = 1


@dataclass(frozen=True)
class Verdict:
    """What all ranks agreed on.

    `loss`, `weight` and `correct` are sums over all shards along the reduction tree; `shard_losses` and `shard_digests`
    have one entry per shard; `requests` is the bitwise or of what the ranks asked for; `squared_norm` is the sum of the
    ranks' entries.
    """

    failed_ranks: tuple[int, ...]
    nonfinite_shards: tuple[int, ...]
    requests: int
    loss: float
    weight: float
    correct: float
    squared_norm: float
    shard_losses: npt.NDArray[np.float64]
    shard_digests: npt.NDArray[np.uint64]


class Agreement:
    """One all-gather of a fixed-size row a rank. Construct and call on all ranks alike."""

    def __init__(self, communicator: Communicator, num_shards: int, layout: int) -> None:
        """`layout` is a 64-bit fingerprint of what must be equal on all ranks: parameters, plan, versions."""
        self._communicator = communicator
        self._num_shards = num_shards
        self._layout = layout
        runs = [shard_run(num_shards, communicator.size, rank) for rank in range(communicator.size)]
        width = max(1, max(len(run) for run in runs))
        self._row = np.zeros((), _row_type(width))
        self._table = np.zeros(communicator.size, self._row.dtype)
        # Where each shard's entry stands in the table, so that collecting them is one indexing operation.
        self._owner = np.concatenate([np.full(len(run), rank) for rank, run in enumerate(runs)]).astype(np.intp)
        self._column = np.concatenate([np.arange(len(run)) for run in runs]).astype(np.intp)
        self.reset()

    def reset(self) -> None:
        """Begin a new row: ready, nothing asked for, no shard computed."""
        self._row.fill(0)

    def report_shard(
        self, index: int, loss: float, weight: float, correct: float, ids_digest: int, *, finite: bool
    ) -> None:
        """Enter the `index`-th shard of this rank's run: summed loss, the count it is averaged over, hits, ids."""
        self._row["shards"][index] = (loss, weight, correct, ids_digest, not finite)

    def agree(
        self, step: int, *, status: Status = Status.READY, requests: int = 0, squared_norm: float = 0.0
    ) -> Verdict:
        """Exchange rows. Collective.

        Raises:
            DisagreementError: on every rank alike, if the ranks are not at the same step with the same layout.
        """
        row = self._row
        row["step"], row["layout"] = step, self._layout
        row["status"], row["requests"], row["squared_norm"] = status, requests, squared_norm
        self._communicator.allgather(as_bytes(row), self._table.view(np.uint8).reshape(self._communicator.size, -1))
        table = self._table
        self._check(table)
        shards = table["shards"][self._owner, self._column]
        return Verdict(
            failed_ranks=tuple(np.flatnonzero(table["status"] == Status.FAILED).tolist()),
            nonfinite_shards=tuple(np.flatnonzero(shards["nonfinite"]).tolist()),
            requests=int(np.bitwise_or.reduce(table["requests"])),
            loss=float(tree_sum(shards["loss"])),
            weight=float(tree_sum(shards["weight"])),
            correct=float(tree_sum(shards["correct"])),
            squared_norm=float(tree_sum(table["squared_norm"])),
            shard_losses=shards["loss"],
            shard_digests=shards["ids"],
        )

    def _check(self, table: npt.NDArray[Any]) -> None:
        for field, meaning in (("step", "step"), ("layout", "parameter layout or settings")):
            values = table[field]
            if (values != values[0]).any():
                got = ", ".join(f"rank {rank}: {int(value):#x}" for rank, value in enumerate(values))
                raise DisagreementError(
                    f"ranks differ in {meaning}: expected one value on all, got {got}. "
                    "All ranks must run the same version of ddp_bp, the same recipe and the same model code"
                )


def _row_type(width: int) -> np.dtype[np.void]:
    shard = np.dtype([("loss", "<f8"), ("weight", "<f8"), ("correct", "<f8"), ("ids", "<u8"), ("nonfinite", "<i8")])
    return np.dtype(
        [
            ("step", "<i8"),
            ("layout", "<u8"),
            ("status", "<i8"),
            ("requests", "<i8"),
            ("squared_norm", "<f8"),
            ("shards", shard, (width,)),
        ]
    )
