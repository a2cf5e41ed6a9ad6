"""What happens to a coordinator, and what it then wants done: the two vocabularies of the state machine.

Events come in and instructions go out; neither knows how it is carried out. Every disk instruction is answered by
exactly one event, in the order of the instructions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ddp_bp.wire.codec import Buffer
from ddp_bp.wire.messages import FromCoordinator, FromWorker, StopCause

DiskJob = Literal["ledger", "metrics", "faults", "checkpoint", "summary"]

# ---- events


@dataclass(frozen=True, slots=True)
class Received:
    """A readable message. `identity` names the connection that it came through."""

    identity: bytes
    message: FromWorker
    payloads: Sequence[Buffer] = ()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Frames that are no message."""

    identity: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A connection that is gone."""

    identity: bytes


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed. Comes several times a second."""


@dataclass(frozen=True, slots=True)
class TerminationAsked:
    """The operating system asked this process to end."""

    cause: StopCause


@dataclass(frozen=True, slots=True)
class ParentGone:
    """The process that started this one has ended."""


@dataclass(frozen=True, slots=True)
class LedgerWritten:
    """Every ledger line handed over is durable; the last is of step `last_step`, None while there are no lines.

    `gaps`: runs of steps, as [first, last], that were found to have no lines since the last such event.
    """

    last_step: int | None
    gaps: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True)
class MetricsWritten:
    """A line was appended to metrics.jsonl."""


@dataclass(frozen=True, slots=True)
class FaultWritten:
    """A line was appended to faults.jsonl."""


@dataclass(frozen=True, slots=True)
class Killed:
    """What came of a `Kill`; see `kill_process`."""

    rank: int
    outcome: Literal["killed", "gone", "elsewhere", "not allowed"]


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    """A checkpoint is durable in the folder `path`. `problem`: what went wrong afterwards, clearing away older ones."""

    request_id: str
    path: str
    size_bytes: int
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class SummaryWritten:
    """summary.json is durable."""


@dataclass(frozen=True, slots=True)
class DiskFailed:
    """A disk instruction failed. `request_id` is that of the checkpoint, where it was one."""

    job: DiskJob
    error: str
    request_id: str | None = None


Event = (
    Received
    | Unreadable
    | Disconnected
    | Tick
    | TerminationAsked
    | ParentGone
    | Killed
    | LedgerWritten
    | MetricsWritten
    | FaultWritten
    | CheckpointWritten
    | SummaryWritten
    | DiskFailed
)

DiskAnswer = LedgerWritten | MetricsWritten | FaultWritten | CheckpointWritten | SummaryWritten | DiskFailed

# ---- instructions


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message; if the connection is gone, `Disconnected` follows."""

    identity: bytes
    message: FromCoordinator


@dataclass(frozen=True, slots=True)
class AppendLedger:
    """Append lines and flush; none: try again what failed before. Answered by LedgerWritten or DiskFailed."""

    lines: Sequence[str]


@dataclass(frozen=True, slots=True)
class AppendMetrics:
    """Append one record to metrics.jsonl. Answered by MetricsWritten or DiskFailed."""

    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AppendFault:
    """Append one record to faults.jsonl and flush. Answered by FaultWritten or DiskFailed."""

    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the process of a rank, if it runs on this machine and is that very one. Answered by Killed."""

    rank: int
    pid: int
    process: str


@dataclass(frozen=True, slots=True)
class Remember:
    """Write down what a coordinator that takes the place of this one has to know, before anything else is done."""


@dataclass(frozen=True, slots=True)
class WriteCheckpoint:
    """Write a checkpoint, durable and after the ledger lines appended before, then clear away older ones.

    Answered by CheckpointWritten or DiskFailed. The arrays belong to whoever carries it out.
    """

    request_id: str
    manifest: Mapping[str, Any]
    model: Mapping[str, np.ndarray[Any, Any]]
    optimizer: Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class WriteSummary:
    """Write summary.json, durable and after everything before. Answered by SummaryWritten or DiskFailed."""

    summary: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Log:
    """Tell the person who runs the job."""

    level: Literal["info", "warning", "error"]
    text: str


@dataclass(frozen=True, slots=True)
class Exit:
    """Nothing is left to do. No event is handled after this."""

    code: int


DiskInstruction = AppendLedger | AppendMetrics | AppendFault | WriteCheckpoint | WriteSummary
Instruction = Send | Kill | Remember | DiskInstruction | Log | Exit
