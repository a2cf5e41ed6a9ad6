"""What is done about ranks that are silent or stuck: they are named, and at the deadline they are evicted.

Eviction asks all ranks for their stacks, keeps them in the run directory, and kills the process where that can be done
from here, else has another rank of its machine do so, and tells it to end. Its death is then MPI's to report, as any
other. If the job has not gone on without it after a while, all ranks are told to end, so that whoever supervises the
job starts it again on what answers; at once if what they wait for is a spare that nobody could kill.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from ddp_bp.coordinator.config import CoordinatorConfig
from ddp_bp.coordinator.events import AppendFault, Instruction, Kill, Killed, Log, Send
from ddp_bp.coordinator.roster import Member, Roster
from ddp_bp.coordinator.stacks import whereabouts
from ddp_bp.coordinator.suspicion import Reason, Suspicion, idle_seconds
from ddp_bp.wire.messages import End, KillProcess
from ddp_bp.wire.process import is_same_machine

GO_ON_SECONDS: Final = 20.0
"""How long after an eviction the job may take to go on without the rank, or to end."""


@dataclass
class _Incident:
    """An eviction that is under way. `acted_at`: when the processes were killed or told to end; None: not yet."""

    reason: Reason
    seconds: float
    ranks: dict[int, Member]
    acted_at: float | None = None
    done: dict[int, str] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


class EvictionDesk:
    """Follows suspicions. `num_evictions` counts ranks, by reason."""

    def __init__(self, config: CoordinatorConfig, roster: Roster) -> None:
        self._config, self._roster = config, roster
        self._named: dict[int, Reason] = {}
        self._incidents: list[_Incident] = []
        # Spares that nobody could kill, and the membership that they had no part in the end of.
        self._unreached: dict[int, int] = {}
        self.num_evictions: Counter[Reason] = Counter()

    def watch(self, suspected: list[Suspicion], now: float) -> tuple[list[Instruction], bool]:
        """Names who is suspected. Returns whether the deadline of some is over, so that stacks are to be asked for."""
        logs: list[Instruction] = []
        by_rank = {one.rank: one for one in suspected}
        for rank, one in by_rank.items():
            if rank not in self._named and (one.reason == "silent" or one.seconds >= self._config.hang_seconds / 2):
                self._named[rank] = one.reason
                logs.append(Log("warning", _described(one, now)))
        for rank in [rank for rank in self._named if rank not in by_rank]:
            del self._named[rank]
            member = self._roster.member(rank)
            if member is not None and now - member.heard_at < self._config.suspect_seconds:
                logs.append(Log("warning", f"rank {rank} is heard of again, and goes on"))
        # Each at its own deadline: MPI may wait for one that is stopped before it lets go of one that has died.
        known = {rank for incident in self._incidents for rank in incident.ranks}
        if not (overdue := [one for one in suspected if self._is_overdue(one) and one.rank not in known]):
            return logs, False
        first = overdue[0]
        self._incidents.append(_Incident(first.reason, first.seconds, {one.rank: one.member for one in overdue}))
        return logs, True

    def evict(
        self, stacks: list[dict[str, Any]], suspected: list[Suspicion], now: float, unix: float
    ) -> list[Instruction]:
        """Ends the processes of those whose deadline was over, unless they are well by now."""
        still = {one.rank for one in suspected if self._is_overdue(one)}
        instructions: list[Instruction] = []
        for incident in [incident for incident in self._incidents if incident.acted_at is None]:
            incident.ranks = {rank: member for rank, member in incident.ranks.items() if rank in still}
            if not incident.ranks:
                self._incidents.remove(incident)
                continue
            incident.acted_at = now
            incident.record = {
                "unix_seconds": unix,
                "event": "evicted",
                "reason": incident.reason,
                "seconds": round(incident.seconds, 3),
                "membership_epoch": self._roster.epoch,
                "ranks": [whereabouts(rank, member, now) for rank, member in incident.ranks.items()],
                "stacks": stacks,
            }
            self.num_evictions[incident.reason] += len(incident.ranks)
            for rank, member in incident.ranks.items():
                why = f"rank {rank} was evicted: {incident.reason} for {incident.seconds:.0f} s"
                instructions += [
                    Log("error", f"{why}; its stacks and those of the others are in faults.jsonl"),
                    Kill(rank, member.hello.pid, member.hello.process),
                    Send(member.identity, End(why)),
                ]
        return instructions

    def killed(self, event: Killed, now: float) -> list[Instruction]:
        """What came of a process; when that is known of all, it is written down."""
        rank = event.rank
        incident = next((one for one in self._incidents if rank in one.ranks and rank not in one.done), None)
        if incident is None:
            return []
        instructions: list[Instruction] = []
        incident.done[rank] = event.outcome
        if event.outcome in ("elsewhere", "not allowed"):
            hello = incident.ranks[rank].hello
            if (neighbour := self._neighbour(incident, hello.process, now)) is not None:
                incident.done[rank] = f"to be killed by rank {neighbour.hello.rank}"
                instructions.append(Send(neighbour.identity, KillProcess(hello.pid, hello.process)))
            else:
                incident.done[rank] = "told to end"
                if rank in self._roster.spares:
                    self._unreached[rank] = self._roster.epoch
        if len(incident.done) == len(incident.ranks):
            done = {str(rank): outcome for rank, outcome in incident.done.items()}
            instructions.append(AppendFault({**incident.record, "done": done}))
        return instructions

    def _neighbour(self, incident: _Incident, process: str, now: float) -> Member | None:
        """A rank that is well, and sees that process."""
        return next(
            (
                member
                for rank, member in self._roster
                if member.connected
                and rank not in incident.ranks
                and now - member.heard_at < self._config.suspect_seconds
                and is_same_machine(process, member.hello.process)
            ),
            None,
        )

    def problem(self, suspected: list[Suspicion], now: float) -> str | None:
        """Why the job is given up, if it does not go on in time; None otherwise."""
        why = self._unreached_spare(suspected)
        for incident in [incident for incident in self._incidents if incident.acted_at is not None]:
            if all(self._roster.member(rank) is not member for rank, member in incident.ranks.items()):
                self._incidents.remove(incident)
            elif now - (incident.acted_at or now) >= GO_ON_SECONDS and not self._makes_progress(incident, now):
                self._incidents.remove(incident)
                ranks = _listed(incident.ranks)
                why = why or f"the job has not gone on without rank {ranks}, which was evicted: {incident.reason}"
        return why

    def _unreached_spare(self, suspected: list[Suspicion]) -> str | None:
        """Why the ranks that are left cannot go on without a dead one, if that is for a spare: MPI waits for all that
        live, whether they train or not."""
        spares = [
            rank
            for rank, epoch in self._unreached.items()
            if epoch == self._roster.epoch and self._roster.member(rank) is None
        ]
        dead = [one.rank for one in suspected if one.reason == "silent" and one.all_wait and not one.member.connected]
        if not spares or not dead:
            return None
        positions = [member.position for rank, member in self._roster.working() if rank not in dead]
        if any(position is None or position.seconds < self._config.suspect_seconds for position in positions):
            return None
        return (
            f"the job cannot go on without rank {_listed(dead)}, which has died: MPI waits for rank {_listed(spares)}, "
            "a spare that is silent, and nobody could kill it"
        )

    def _makes_progress(self, incident: _Incident, now: float) -> bool:
        """Whether a rank that is left does something, such as to compute in the place of the one that is gone."""
        left = [member for rank, member in self._roster if rank not in incident.ranks and member.position is not None]
        since = incident.acted_at or now
        return any(_moved_at(member) > since and idle_seconds(member, now, since) < GO_ON_SECONDS for member in left)

    def _is_overdue(self, one: Suspicion) -> bool:
        if one.reason == "silent":
            # Of ranks that are silent all together it is the coordinator that may be cut off, unless some have ended.
            return 0 < self._config.silence_seconds <= one.seconds and one.all_wait
        return 0 < self._config.hang_seconds <= one.seconds


def _listed(ranks: Iterable[int]) -> str:
    return ", ".join(map(str, ranks))


def _moved_at(member: Member) -> float:
    """When a rank that has said what it is doing last made progress."""
    return member.position_at - (member.position.seconds if member.position is not None else 0.0)


def _described(one: Suspicion, now: float) -> str:
    where = whereabouts(one.rank, one.member, now)
    position = f"step {where['step']}, {where['phase']}" if where["phase"] else "not in a step yet"
    what = {
        "silent": f"has not been heard of for {one.seconds:.1f} s",
        "stuck": f"has made no progress for {one.seconds:.1f} s, and others wait for it",
        "deadlock": f"waits for others, as all ranks do, for {one.seconds:.1f} s",
    }
    return f"rank {one.rank} (process {where['pid']} on {where['hostname']}; {position}) {what[one.reason]}"
