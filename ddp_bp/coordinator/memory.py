"""What a coordinator leaves for the one that takes its place: the sums behind its counters, in a file of the run.

A counter that was shown must not fall when the process behind it is another one; so what is shown is written down
first. The file is for a crash of this process and not of the machine, with which the job ends as well: it is replaced
as a whole, and not flushed. Knows what is to be kept, and not when.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from ddp_bp.coordinator.checkpoints import DURATION_BUCKETS_SECONDS, CheckpointRecord
from ddp_bp.coordinator.events import DiskJob
from ddp_bp.coordinator.progress import Sums
from ddp_bp.coordinator.suspicion import Reason
from ddp_bp.wire.messages import Hello

if TYPE_CHECKING:
    from ddp_bp.coordinator.state import Coordinator

MEMORY_FILE: Final = "coordinator-state.msgpack"


WRITE_SECONDS: Final = 1.0
"""How long a write is waited for."""


class CheckpointSums(msgspec.Struct, frozen=True):
    """The counters of `CheckpointRecord`."""

    results: dict[str, int] = {}
    num_bytes: int = 0
    duration_counts: list[int] = []
    duration_sum_seconds: float = 0.0


class KnownRank(msgspec.Struct, frozen=True):
    """A rank that has joined, and what it calls itself since the membership `epoch`. `left`: it said goodbye."""

    hello: Hello
    rank: int
    epoch: int
    left: bool


class Memory(msgspec.Struct, frozen=True):
    """What is kept. `run_id` names the start that it is of."""

    run_id: str
    sums: Sums
    checkpoints: CheckpointSums
    num_messages: dict[str, int]
    num_rejected: int
    num_disk_failures: dict[DiskJob, int]
    num_ledger_gaps: int
    num_recoveries: int
    membership_epoch: int
    lost_ranks: tuple[int, ...]
    spare_ranks: tuple[int, ...]
    num_evictions: dict[Reason, int]
    wanted_world_size: int | None = None
    ranks: list[KnownRank] = []


def memory_of(coordinator: Coordinator) -> Memory:
    """What a coordinator that takes this one's place has to know."""
    record = coordinator.checkpoints.record
    return Memory(
        coordinator.config.run_id,
        coordinator.progress.sums,
        CheckpointSums(dict(record.results), record.num_bytes, record.duration_counts, record.duration_sum_seconds),
        dict(coordinator.num_messages),
        coordinator.num_rejected,
        dict(coordinator.durability.num_failures),
        coordinator.durability.num_ledger_gaps,
        coordinator.roster.num_recoveries,
        coordinator.roster.epoch,
        coordinator.roster.lost,
        coordinator.roster.spares,
        dict(coordinator.lookout.evictions.num_evictions),
        coordinator.scaling.wanted,
        [KnownRank(member.hello, member.rank, member.epoch, member.left) for _, member in coordinator.roster],
    )


def recall(coordinator: Coordinator, memory: Memory) -> None:
    """Let a coordinator that has just been made count on from there."""
    sums, record = memory.sums, coordinator.checkpoints.record
    if memory.run_id != coordinator.config.run_id:
        # All ranks have been started again, and count from 0.
        sums.begin_anew()
    else:
        roster = coordinator.roster
        roster.epoch, roster.lost, roster.spares = memory.membership_epoch, memory.lost_ranks, memory.spare_ranks
        coordinator.scaling.wanted = memory.wanted_world_size
        for known in memory.ranks:
            roster.recall(known.hello, known.rank, known.epoch, known.left, coordinator.started_at)
    coordinator.progress.count_on(sums)
    _take_in(record, memory.checkpoints)
    coordinator.num_messages = Counter(memory.num_messages)
    coordinator.num_rejected = memory.num_rejected
    coordinator.durability.num_failures.update(memory.num_disk_failures)
    coordinator.durability.num_ledger_gaps = memory.num_ledger_gaps
    coordinator.roster.num_recoveries = memory.num_recoveries
    coordinator.lookout.evictions.num_evictions.update(memory.num_evictions)


def read_memory(run_dir: Path) -> Memory | None:
    """What a coordinator of the run has left; None where there is nothing that can be read."""
    try:
        return msgspec.msgpack.decode((run_dir / MEMORY_FILE).read_bytes(), type=Memory)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None


class MemoryFile:
    """The file in a run directory. A disk that refuses, or hangs, costs no more than that counters may fall one day."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / MEMORY_FILE
        self._turn = asyncio.Lock()

    async def keep(self, coordinator: Coordinator) -> None:
        """Write down what the coordinator counts at this moment; one at a time, and in a thread."""
        content = msgspec.msgpack.encode(memory_of(coordinator))
        try:
            await asyncio.wait_for(self._turn.acquire(), WRITE_SECONDS)
        except TimeoutError:
            return
        writing = asyncio.create_task(asyncio.to_thread(self._write, content))
        # Whoever comes next has newer content, and has to wait even if nobody waits for this one any more.
        writing.add_done_callback(lambda _: self._turn.release())
        await asyncio.wait({writing}, timeout=WRITE_SECONDS)

    def _write(self, content: bytes) -> None:
        temporary = self._path.with_name(f".tmp-{MEMORY_FILE}")
        with contextlib.suppress(OSError):
            temporary.write_bytes(content)
            temporary.replace(self._path)


def _take_in(record: CheckpointRecord, kept: CheckpointSums) -> None:
    record.results.update(kept.results)
    record.num_bytes, record.duration_sum_seconds = kept.num_bytes, kept.duration_sum_seconds
    if len(kept.duration_counts) == len(DURATION_BUCKETS_SECONDS) + 1:
        record.duration_counts = list(kept.duration_counts)
