"""When a checkpoint is due, what becomes of each one, and who is told.

One checkpoint is received at a time; several may be waiting for the disk. A newer one drops an older one that is not
complete yet. What was asked for and what the ranks then take have names of their own: rank 0 says which request a
checkpoint answers. This module decides and counts; it neither writes nor knows the state of the job.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import msgspec

from ddp_bp.coordinator.assembly import Assembly
from ddp_bp.coordinator.config import CoordinatorConfig
from ddp_bp.coordinator.events import CheckpointWritten, Instruction, Log, Send, WriteCheckpoint
from ddp_bp.coordinator.roster import Member, Roster
from ddp_bp.errors import WireError
from ddp_bp.wire.codec import Buffer
from ddp_bp.wire.messages import CheckpointBegin, CheckpointChunk, CheckpointDone, CheckpointEnd, TakeCheckpoint

REQUEST_SECONDS: Final = 600.0
"""How long rank 0 may take to begin a checkpoint that it was asked for. Ranks agree between steps; one may be long."""

WRITE_SECONDS: Final = 600.0
WRITE_BYTES_PER_SECOND: Final = 1e6
"""How long the disk may take for a checkpoint, and besides how slow it may be. Then the checkpoint counts as failed,
and no other is begun until the disk answers, as that of a file server may that has been away."""

AWAY_SECONDS: Final = 2.0
"""How long a checkpoint waits for the part of a rank that is not connected."""

DURATION_BUCKETS_SECONDS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 300.0)

_NO_ANSWER: Final = "the disk of the run directory has not answered for over 10 minutes; is its file server there?"
_MEMBERSHIP_CHANGED: Final = "ranks have died, and the others go on without them"
_NUM_REMEMBERED: Final = 256
_NUM_REPEATED: Final = 16
"""How many outcomes a rank that comes back is told again; it waits for one at a time, and others may lie after it."""


@dataclass(slots=True)
class CheckpointRecord:
    """What is shown about checkpoints. `results` counts "ok", "failed" and "dropped" (for a newer one)."""

    last_step: int | None = None
    last_path: str | None = None
    last_success_unix_seconds: float | None = None
    last_bytes: int | None = None
    last_seconds: float | None = None
    num_bytes: int = 0
    results: Counter[str] = field(default_factory=Counter)
    duration_counts: list[int] = field(default_factory=lambda: [0] * (len(DURATION_BUCKETS_SECONDS) + 1))
    duration_sum_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Asked:
    tool: bytes | None
    asked_at: float


@dataclass(frozen=True, slots=True)
class _Writing:
    """`until`: when the disk should have answered."""

    step: int
    begun_at: float
    until: float


class CheckpointDesk:
    """All checkpoints of one job, from being due to being durable or dropped."""

    def __init__(self, config: CoordinatorConfig, roster: Roster, record: CheckpointRecord) -> None:
        """`record` holds what is known from earlier sessions of the run, and is kept up to date."""
        self.record = record
        self._config = config
        self._roster = roster
        self._asked: dict[str, _Asked] = {}
        self._answered_by: dict[str, dict[str, _Asked]] = {}
        self._used_requests: deque[str] = deque(maxlen=_NUM_REMEMBERED)
        self._assembly: Assembly | None = None
        self._away_since: float | None = None
        self._writing: dict[str, _Writing] = {}
        # Given up, though the disk may still write it.
        self._stalled: dict[str, _Writing] = {}
        self._closed: dict[str, CheckpointDone] = {}
        self._due_at: float | None = None
        self._num_timed = 0

    @property
    def receiving(self) -> bool:
        """Parts of a checkpoint have arrived, and others are still to come."""
        return self._assembly is not None

    @property
    def in_progress(self) -> bool:
        """A checkpoint was asked for, is arriving, or is being written."""
        return bool(self._asked or self._assembly or self._writing)

    # ---- when

    def training_begins(self, now: float) -> None:
        """Starts the clock of checkpoints that are due by time."""
        if self._config.checkpoint_every_seconds is not None:
            self._due_at = now + self._config.checkpoint_every_seconds

    def request(self, request_id: str, reason: str, tool: bytes | None, now: float) -> list[Instruction]:
        """Asks rank 0 for a checkpoint, on behalf of a tool or (None) of the clock."""
        rank_0 = self._roster.current(0)
        if rank_0 is not None and rank_0.connected and not self._knows(request_id):
            self._asked[request_id] = _Asked(tool, now)
            self._used_requests.append(request_id)
            return [Send(rank_0.identity, TakeCheckpoint(request_id, reason))]
        if tool is None:
            return []
        why = "rank 0 is not connected, so nobody can take a checkpoint now"
        if self._knows(request_id):
            why = f"request id {request_id!r} was used before; choose another"
        return [Send(tool, CheckpointDone(request_id, ok=False, message=why))]

    def _knows(self, request_id: str) -> bool:
        receiving = self._assembly is not None and self._assembly.request_id == request_id
        return receiving or request_id in self._writing or request_id in (*self._closed, *self._used_requests)

    def tick(self, now: float, training: bool) -> list[Instruction]:
        """Drops what has waited too long, and asks for what is due while training goes on."""
        instructions = self._drop_if_away(now)
        assembly = self._assembly
        if assembly is not None and now - assembly.last_heard_at > self._config.checkpoint_timeout_seconds:
            waiting_for = ", ".join(map(str, assembly.missing_ranks()))
            why = (
                f"nothing arrived for {self._config.checkpoint_timeout_seconds:g} s; rank {waiting_for} is not through"
            )
            self._assembly = None
            instructions += self._close(assembly.request_id, "failed", why, assembly.step)
        for request_id in [name for name, one in self._writing.items() if now > one.until]:
            self._stalled[request_id] = writing = self._writing.pop(request_id)
            instructions += self._close(request_id, "failed", _NO_ANSWER, writing.step)
        for request_id in [name for name, asked in self._asked.items() if now - asked.asked_at > REQUEST_SECONDS]:
            instructions += self._give_up(request_id, f"rank 0 did not begin it within {REQUEST_SECONDS:g} s")
        if training and self._due_at is not None and now >= self._due_at and not self.in_progress:
            self._num_timed += 1
            instructions += self.request(f"timed-{self._num_timed}", "time", None, now)
            self._due_at = now + (self._config.checkpoint_every_seconds or 0.0)
        return instructions

    def _drop_if_away(self, now: float) -> list[Instruction]:
        """Drops what is arriving if a rank whose part is missing has been away for too long."""
        assembly = self._assembly
        away = [rank for rank in (assembly.missing_ranks() if assembly else ()) if not self._is_here(rank)]
        if assembly is None or not away:
            self._away_since = None
            return []
        if self._away_since is None:
            self._away_since = now
        if now - self._away_since < AWAY_SECONDS:
            return []
        self._assembly = self._away_since = None
        why = f"rank {', '.join(map(str, away))} is not connected, and its part is missing"
        return self._close(assembly.request_id, "dropped", why, assembly.step, rank_away=True)

    def _is_here(self, rank: int) -> bool:
        member = self._roster.current(rank)
        return member is not None and member.connected

    # ---- receiving

    def begin(self, sender: Member, message: CheckpointBegin, now: float) -> list[Instruction]:
        """A rank begins to send. If that comes too late, for this one was dropped or is over, the rank is told."""
        if sender.epoch != self._roster.epoch:
            return [Send(sender.identity, CheckpointDone(message.request_id, ok=False, message=_MEMBERSHIP_CHANGED))]
        if message.rank == 0:
            self._attach(message.answers or message.request_id, message.request_id)
        if message.request_id in self._writing:
            # All of it is here; a rank whose connection was lost may not know.
            return []
        if (done := self._closed.get(message.request_id)) is not None:
            return [Send(sender.identity, done), *self._tell_tools(done)]
        if self._stalled:
            # Each would wait for the disk in memory.
            if self._assembly is not None and self._assembly.request_id == message.request_id:
                self._assembly = None
            return self._close(message.request_id, "failed", _NO_ANSWER)
        instructions: list[Instruction] = []
        try:
            if self._assembly is not None and self._assembly.request_id == message.request_id:
                self._assembly.begin(message, now)
                return instructions
            newer = Assembly(message, self._roster.world_size, now)
        except WireError as error:
            return self._abort(message.request_id, error)
        if self._assembly is not None:
            older = self._assembly
            if newer.step < older.step:
                return self._close(newer.request_id, "dropped", _superseded(older), newer.step)
            instructions = self._close(older.request_id, "dropped", _superseded(newer), older.step)
        self._assembly = newer
        return instructions

    def chunk(self, message: CheckpointChunk, payload: Buffer, now: float) -> list[Instruction] | None:
        """Elements arrive. None: not of the checkpoint being received."""
        if self._assembly is None or self._assembly.request_id != message.request_id:
            return None
        try:
            self._assembly.chunk(message, payload, now)
        except WireError as error:
            return self._abort(message.request_id, error)
        return []

    def end(self, message: CheckpointEnd, now: float) -> list[Instruction] | None:
        """A rank is through; after the last one the disk has its turn. None: not of the checkpoint being received."""
        assembly = self._assembly
        if assembly is None or assembly.request_id != message.request_id:
            return None
        try:
            if not assembly.end(message, now):
                return []
        except WireError as error:
            return self._abort(message.request_id, error)
        self._assembly = None
        manifest, model, optimizer = assembly.result()
        num_bytes = sum(array.nbytes for array in (*model.values(), *optimizer.values()))
        until = now + WRITE_SECONDS + num_bytes / WRITE_BYTES_PER_SECOND
        self._writing[assembly.request_id] = _Writing(assembly.step, assembly.begun_at, until)
        return [WriteCheckpoint(assembly.request_id, manifest, model, optimizer)]

    def _abort(self, request_id: str, error: WireError) -> list[Instruction]:
        step: int | None = None
        if self._assembly is not None and self._assembly.request_id == request_id:
            step = self._assembly.step
            self._assembly = None
        return self._close(request_id, "failed", str(error), step)

    def membership_changed(self) -> list[Instruction]:
        """Ranks have died, and the others go on: what was arriving will never be complete, what it was to answer is
        to be asked for again."""
        assembly, self._assembly = self._assembly, None
        if assembly is None:
            return []
        self._asked = {**self._answered_by.pop(assembly.request_id, {}), **self._asked}
        return self._close(assembly.request_id, "dropped", _MEMBERSHIP_CHANGED, assembly.step)

    def ask_again(self, rank_0: Member) -> list[Instruction]:
        """Hands a new rank 0 what has been asked for and not been answered."""
        return [Send(rank_0.identity, TakeCheckpoint(request_id, "request")) for request_id in self._asked]

    # ---- outcome

    def written(self, event: CheckpointWritten, now: float, unix_seconds: float) -> list[Instruction]:
        """The disk holds a checkpoint."""
        stalled = self._stalled.pop(event.request_id, None)
        writing = self._writing.pop(event.request_id, stalled)
        if writing is None:
            return []
        record = self.record
        seconds = now - writing.begun_at
        record.last_step, record.last_path, record.last_bytes = writing.step, event.path, event.size_bytes
        record.last_success_unix_seconds, record.last_seconds = unix_seconds, seconds
        record.num_bytes += event.size_bytes
        record.duration_counts[sum(seconds > bound for bound in DURATION_BUCKETS_SECONDS)] += 1
        record.duration_sum_seconds += seconds
        if self._config.checkpoint_every_seconds is not None:
            self._due_at = now + self._config.checkpoint_every_seconds
        if stalled is not None:
            # Ranks were told otherwise, and have forgotten it.
            record.results["ok"] += 1
            return [Log("warning", f"the disk answers again; checkpoint {event.request_id} is written: {event.path}")]
        return self._close(event.request_id, "ok", event.problem or "", writing.step, event.path)

    def failed(self, request_id: str, error: str) -> list[Instruction]:
        """The disk could not write a checkpoint."""
        self._stalled.pop(request_id, None)
        writing = self._writing.pop(request_id, None)
        return [] if writing is None else self._close(request_id, "failed", error, writing.step)

    def abandon(self, why: str) -> list[Instruction]:
        """The coordinator ends: whoever waits for a checkpoint is told that it will not come."""
        instructions: list[Instruction] = []
        if self._assembly is not None:
            assembly, self._assembly = self._assembly, None
            instructions += self._close(assembly.request_id, "failed", why, assembly.step)
        for request_id in list(self._asked):
            instructions += self._give_up(request_id, why)
        return instructions

    def outcomes(self, rank: Member) -> list[Instruction]:
        """Tells a rank again how the latest checkpoints ended, for it may have missed that."""
        latest = list(islice(reversed(self._closed.values()), _NUM_REPEATED))
        return [Send(rank.identity, done) for done in reversed(latest)]

    def _attach(self, request_id: str, to: str) -> None:
        """The checkpoint `to` answers a request, and those made before it: rank 0 hears of requests in their order."""
        if request_id not in self._asked:
            return
        answered = self._answered_by.setdefault(to, {})
        for earlier in list(self._asked):
            answered[earlier] = self._asked.pop(earlier)
            if earlier == request_id:
                return

    def _give_up(self, request_id: str, why: str) -> list[Instruction]:
        """A request that no checkpoint answered."""
        self._attach(request_id, request_id)
        self.record.results["failed"] += 1
        return [
            Log("warning", f"checkpoint request {request_id} failed: {why}"),
            *self._tell_tools(CheckpointDone(request_id, ok=False, message=why)),
        ]

    def _tell_tools(self, done: CheckpointDone) -> list[Instruction]:
        """How a checkpoint ended, to the tools whose requests it answered, under the names that they know."""
        return [
            Send(asked.tool, msgspec.structs.replace(done, request_id=request_id))
            for request_id, asked in self._answered_by.pop(done.request_id, {}).items()
            if asked.tool is not None
        ]

    def _close(
        self,
        request_id: str,
        result: str,
        message: str,
        step: int | None = None,
        path: str | None = None,
        *,
        rank_away: bool = False,
    ) -> list[Instruction]:
        self.record.results[result] += 1
        done = CheckpointDone(request_id, result == "ok", step, path, message, rank_away)
        self._closed[request_id] = done
        if len(self._closed) > _NUM_REMEMBERED:
            del self._closed[next(iter(self._closed))]
        instructions: list[Instruction] = []
        if result != "ok":
            instructions.append(Log("warning", f"checkpoint {request_id} {result}: {message}"))
        elif message:
            instructions.append(Log("warning", f"checkpoint {request_id} is written, but {message}"))
        instructions += [Send(identity, done) for identity in self._roster.connected()]
        return instructions + self._tell_tools(done)


def _superseded(by: Assembly) -> str:
    return f"overtaken by checkpoint {by.request_id} of step {by.step}"
