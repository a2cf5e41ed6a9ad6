"""Every message between workers, tools and the coordinator, as typed records.

A worker opens with `Hello` and waits for `Welcome` (or `Refused`); then it reports, and commands come back. What a rank
sends arrives in the order sent; nothing is promised about the order between ranks. This module is vocabulary only: it
knows neither bytes (see `codec`) nor what the coordinator does with a message.

Conventions
    rank            the rank that sends, 0 .. world_size - 1; the coordinator rejects a message under another's rank.
                    In `Hello` that at the start of the job, which names the connection for as long as it stands; in
                    all others that of the sender's latest `Membership`, if it has sent one
    step            number of committed optimizer steps since the beginning of the run, across resumes
    request_id      names one checkpoint, on every rank alike, for instance "step-<n>" or "final"; in messages to and
                    from a tool, and in TakeCheckpoint, the request that a checkpoint is to answer
    durable         on disk and flushed, so that it survives a power cut
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

import msgspec

from ddp_bp.wire.phases import NUM_PHASE_BUCKETS

PROTOCOL_VERSION: Final = 1

TOOL_RANK: Final = -1
"""The rank in the `Hello` of a tool, which is no rank of the job."""

CHUNK_BYTES: Final = 64 << 10
"""Payload size that senders of arrays should use: large enough to be cheap, small enough not to delay reports."""

MAX_FRAME_BYTES: Final = 64 << 20
"""A frame longer than this is cut off by the receiver. Ledger lines are to be split so that they stay well below."""

Natural = Annotated[int, msgspec.Meta(ge=0)]
Rank = Annotated[int, msgspec.Meta(ge=0)]
ArrayDtype = Literal[
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"
]
CheckpointFile = Literal["model", "optimizer"]
StopCause = Literal["SIGINT", "SIGTERM", "SIGUSR1", "user", "resize", "respawn", "too_few"]
"""Who wants an end: a signal, somebody; or the launcher, to go on with another number of ranks, or with others in the
place of dead ones, or since too few are left."""


def _snake_case(class_name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", class_name).lower()


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=_snake_case):
    """Base of all messages. On the wire the field `type` holds the class name in snake case."""


def type_name(message: Message) -> str:
    """The wire's name of a message's type, for instance "checkpoint_chunk"."""
    return str(message.__struct_config__.tag)


# ---- parts of messages


class PhaseTotal(msgspec.Struct, frozen=True):
    """Durations of one phase since the sender has begun.

    counts        how many fell into each bucket of `PHASE_BUCKETS_SECONDS`, and last how many were longer
    sum_seconds   their sum
    """

    counts: Annotated[list[Natural], msgspec.Meta(min_length=NUM_PHASE_BUCKETS, max_length=NUM_PHASE_BUCKETS)]
    sum_seconds: Annotated[float, msgspec.Meta(ge=0)]


class TensorLayout(msgspec.Struct, frozen=True):
    """A tensor inside a flat array: `prod(shape)` elements in C order from element `offset` on."""

    name: str
    shape: list[Natural]
    offset: Natural


class Position(msgspec.Struct, frozen=True):
    """What the training thread of a rank is doing.

    phase     one of `WORKING`, `WAITING`, or another word
    seconds   for how long nothing of this has changed, nor any other sign of progress
    """

    step: Natural
    phase: str
    seconds: Annotated[float, msgspec.Meta(ge=0)]


class ThreadStack(msgspec.Struct, frozen=True):
    """Where a Python thread is. `frames`: "function (file:line)", the outermost first."""

    name: str
    frames: list[str]


class ArrayLayout(msgspec.Struct, frozen=True):
    """A flat array of `size` little-endian elements, and the tensors that are written to `file` from it."""

    name: str
    file: CheckpointFile
    dtype: ArrayDtype
    size: Natural
    tensors: list[TensorLayout]


# ---- both ways


class Heartbeat(Message, frozen=True):
    """From every rank to the coordinator, as often as the recipe says, and once a second from it to every rank: the
    sender is there, whatever its training thread is doing.

    A rank that sees none for long has lost the coordinator, and trains on. One whose sender is no known rank means
    nothing.

    position   from a rank that trains: how far it is
    """

    position: Position | None = None


# ---- worker -> coordinator


class Hello(Message, frozen=True):
    """The first message of a connection, and again after the link was lost. Answered by `Welcome` or `Refused`.

    A process that comes back is told again, before `Welcome`, what it may have missed: how the latest checkpoints
    ended, what is durable of the ledger, and on rank 0 of the summary. After `Welcome` it sends again what it does not
    know to be durable: lines of the ledger, its part of a checkpoint from its begin on, the summary.

    process    a name of this very process, which no other one ever has (see `wire.process`); empty: not known
    """

    protocol_version: int
    package_version: str
    run_id: str
    rank: Annotated[int, msgspec.Meta(ge=TOOL_RANK)]
    world_size: Natural
    pid: Natural
    hostname: str
    shards: Natural
    role: Literal["worker", "tool"] = "worker"
    process: str = ""


class Membership(Message, frozen=True):
    """Ranks have died, and those that are left go on without them, perhaps with spares in their place: from each one
    that goes on, in any order.

    What a rank sends before it is still of the membership before; checkpoints of that are dropped, and their request
    ids used up, so that those begun afterwards must have others. Requests that they were to answer are made again, to
    the new rank 0. The sender's `Hello` stays what it was, and this follows it whenever it is sent again.

    epoch       rises with each new membership; the first one, without this message, is 0
    rank        what the sender is from now on, of `world_size`
    lost        all ranks that have died so far, as they were numbered at the start: the same for all that are left
    spares      likewise, those that live and are not among `world_size`, but wait to take the place of one that dies
    """

    epoch: Annotated[int, msgspec.Meta(ge=1)]
    rank: Rank
    world_size: Annotated[int, msgspec.Meta(ge=1)]
    lost: list[Rank]
    spares: list[Rank] = []


class Report(Message, frozen=True):
    """What a rank has done since its process began; sent a few times a second, never once per step.

    A report that is lost costs nothing, for the next one says it as well.

    num_steps     steps that were committed
    num_samples   samples of those steps, of whole global batches
    num_nonfinite_steps   those among the steps that changed nothing, because a loss or gradient was not finite
    phase         what the rank is doing now
    phases        durations by name, of those in `PHASES` that happened
    scalars       latest values, from rank 0: train_loss, train_accuracy, learning_rate, gradient_norm; may be NaN
    """

    rank: Rank
    step: Natural
    epoch: Natural
    sent_at_unix_seconds: float
    num_steps: Natural
    num_samples: Natural
    phase: Literal["setup", "train", "evaluate", "checkpoint", "finish"]
    phases: dict[str, PhaseTotal]
    scalars: dict[str, float]
    num_nonfinite_steps: Natural = 0


class LedgerRecords(Message, frozen=True):
    """Lines for the ledger, from rank 0; answered by `Acknowledged(of="ledger", step=last_step)` once durable.

    lines          JSON objects without line ends, each with an integer "step", counted from 0, that never falls. All
                   lines of one step travel together. Lines of a step that the file already holds replace it and
                   everything after it, so sending again after a lost link, or after a resume, is harmless
    last_step      "step" of the last line
    chain_sha256   head of the hash chain after the last line

    Rank 0 sends the lines of the steps that a checkpoint contains before its `CheckpointEnd`.
    """

    rank: Rank
    lines: list[str]
    last_step: Natural
    chain_sha256: str


class Evaluation(Message, frozen=True):
    """Result of an evaluation over the held-out samples, from rank 0."""

    step: Natural
    epoch: Natural
    loss: float
    accuracy: float | None
    num_samples: Natural
    seconds: float


class CheckpointBegin(Message, frozen=True):
    """A rank is about to send its slices of a checkpoint. Every rank sends one, with the same arrays and the same step.

    A request id names one attempt: after `CheckpointDone` it is used up, and answered at once with how that ended. A
    rank that begins again under the same id sends its whole part again.

    manifest   fields of the checkpoint's manifest, "step" (committed steps) at least; rank 0's are the ones kept
    answers    from rank 0: the request id of the `TakeCheckpoint` that this checkpoint satisfies, if any; those that
               came before it are satisfied as well. Empty: that of a `TakeCheckpoint` with the same request id, if any
    """

    request_id: str
    rank: Rank
    world_size: Annotated[int, msgspec.Meta(ge=1)]
    manifest: dict[str, Any]
    arrays: list[ArrayLayout]
    answers: str = ""


class CheckpointChunk(Message, frozen=True):
    """Elements of one array from `offset_elements` on; as many as the one payload frame holds.

    The chunks of all ranks together cover every element of every array exactly once.
    """

    request_id: str
    rank: Rank
    array: str
    offset_elements: Natural


class CheckpointEnd(Message, frozen=True):
    """A rank has sent all its chunks. After the last rank's, `CheckpointDone` goes to all of them."""

    request_id: str
    rank: Rank


class Failure(Message, frozen=True):
    """A rank raised and is about to end the job. The first one that arrives is the one shown."""

    rank: Rank
    step: Natural
    error: str
    traceback: str


class Finished(Message, frozen=True):
    """Training ended, from rank 0. `summary` goes to summary.json; answered by `Acknowledged(of="finished")` once that
    and everything sent before it is durable."""

    rank: Rank
    summary: dict[str, Any]


class Stacks(Message, frozen=True):
    """Answer to `TellStacks`: every Python thread of a rank."""

    request_id: str
    threads: list[ThreadStack]


class Goodbye(Message, frozen=True):
    """The last message of a rank that leaves in good order. Not answered. Tools just go."""

    rank: Rank


# ---- tool -> coordinator


class StatusRequest(Message, frozen=True):
    """Answered by `StatusReply`."""


class StacksRequest(Message, frozen=True):
    """Where is every rank? Answered by `StacksReply` when all have said so, or after a few seconds."""


class CheckpointRequest(Message, frozen=True):
    """Take a checkpoint as soon as the ranks can agree on a step; answered by `CheckpointDone` when it is durable."""

    request_id: str


class StopRequest(Message, frozen=True):
    """End the job at the next step, with a checkpoint; answered by `Acknowledged(of="stop")` once ranks were told."""

    reason: StopCause


class ScaleRequest(Message, frozen=True):
    """Go on with that many ranks; answered by `Acknowledged(of="scale")` once noted, or not ok with what is against it.

    Ranks are started by the launcher, which finds the wish in the status, ends the job with a checkpoint, and starts it
    from there with so many.
    """

    world_size: Annotated[int, msgspec.Meta(ge=1)]


# ---- coordinator -> worker or tool


class Welcome(Message, frozen=True):
    """Answer to `Hello`. `checkpoint_every_steps` is a standing order: a checkpoint after each such number of committed
    steps, without being told again. 0: none."""

    protocol_version: int
    run_id: str
    checkpoint_every_steps: Natural


class Introduce(Message, frozen=True):
    """The sender is not known here: it is to say who it is, with `Hello`. The answer to a stranger's heartbeat."""


class Refused(Message, frozen=True):
    """The sender does not belong to this job, or asks for what cannot be done; the reason says what to do."""

    reason: str


class TakeCheckpoint(Message, frozen=True):
    """To rank 0 only, which agrees with the other ranks on the step, and names the request in `CheckpointBegin`."""

    request_id: str
    reason: str


class Stop(Message, frozen=True):
    """To every rank: end at the next step that all agree on, with a checkpoint. May come more than once."""

    reason: StopCause


class TellStacks(Message, frozen=True):
    """Say at once where every thread is; answered by `Stacks`, whatever the training thread is doing."""

    request_id: str


class End(Message, frozen=True):
    """The rank is no part of the job any more: its process ends at once, whatever it is doing."""

    reason: str


class KillProcess(Message, frozen=True):
    """To one rank: kill the process of another one, on its machine, which is out of reach for the coordinator and does
    not answer. `process`: as in its `Hello`."""

    pid: Natural
    process: str


class CheckpointDone(Message, frozen=True):
    """How a checkpoint ended, to every rank and to the tool that asked.

    May come more than once.

    ok        True: durable in the folder `path`. False: it was dropped, `message` says why, and training goes on
    step      its number of committed steps, None where it never got that far
    rank_away it was dropped because the part of a rank was missing that is not connected: one more may succeed, and MPI
              knows whether that rank has died
    """

    request_id: str
    ok: bool
    step: Natural | None = None
    path: str | None = None
    message: str = ""
    rank_away: bool = False


class Acknowledged(Message, frozen=True):
    """`of` happened; for "ledger" every line up to and including `step` is durable, which every rank is told, since any
    may be rank 0 one day. May come more than once.

    ok=False ("finished", "scale"): the summary could not be written, or there cannot be so many ranks; `message` says
    why.
    """

    of: Literal["ledger", "finished", "stop", "scale"]
    step: Natural | None = None
    ok: bool = True
    message: str = ""


class StacksReply(Message, frozen=True):
    """Every rank, by its number at the start: where it is, and the stacks of those that have answered.

    ranks   with rank, hostname, pid, step, phase, phase_seconds, heartbeat_age_seconds, and threads: None, or a list
            of {name, frames}
    """

    ranks: list[dict[str, Any]]


class StatusReply(Message, frozen=True):
    """The same content as /api/status."""

    status: dict[str, Any]


FromWorker = (
    Hello
    | Heartbeat
    | Membership
    | Report
    | LedgerRecords
    | Evaluation
    | CheckpointBegin
    | CheckpointChunk
    | CheckpointEnd
    | Failure
    | Finished
    | Stacks
    | Goodbye
    | StatusRequest
    | StacksRequest
    | CheckpointRequest
    | StopRequest
    | ScaleRequest
)

FromCoordinator = (
    Welcome
    | Introduce
    | Refused
    | TakeCheckpoint
    | TellStacks
    | Stop
    | End
    | KillProcess
    | CheckpointDone
    | Acknowledged
    | StacksReply
    | StatusReply
    | Heartbeat
)
