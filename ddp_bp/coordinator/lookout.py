"""The look-out for ranks that do not come, are silent or are stuck: whom something is wrong with.

Joins what is suspected to what is done about it. Knows no message of a rank, and not how a job ends.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ddp_bp.coordinator.beginning import Beginning
from ddp_bp.coordinator.config import CoordinatorConfig
from ddp_bp.coordinator.events import AppendFault, Instruction, Send
from ddp_bp.coordinator.eviction import EvictionDesk
from ddp_bp.coordinator.lifecycle import ENDED, State
from ddp_bp.coordinator.progress import Progress
from ddp_bp.coordinator.roster import Member, Roster
from ddp_bp.coordinator.stacks import StacksDesk
from ddp_bp.coordinator.suspicion import Suspicion, suspicions
from ddp_bp.wire import messages as m

PAUSE_SECONDS: Final = 1.0
"""Where time passes from tick to tick, which come ten times a second, this process itself was stopped meanwhile."""


class Seen(NamedTuple):
    """What a look has led to: instructions, and why the job must end, if it must."""

    instructions: list[Instruction]
    problem: str | None


class Lookout:
    """Looks at the ranks of one job, whatever state that is in."""

    def __init__(self, config: CoordinatorConfig, roster: Roster, progress: Progress, now: float) -> None:
        self._config, self._roster, self._progress = config, roster, progress
        self.beginning = Beginning(config, roster)
        self.evictions = EvictionDesk(config, roster)
        # None: asked for by the look-out itself, which evicts; else the tool that waits.
        self._stacks: StacksDesk[bytes | None] = StacksDesk(roster)
        self._here_since = self._ticked_at = now

    def tick(self, now: float) -> None:
        """Time has passed; too much of it is no fault of the ranks."""
        if now - self._ticked_at > PAUSE_SECONDS:
            self._here_since = now
        self._ticked_at = now

    def suspicions(self, state: State, now: float) -> list[Suspicion]:
        """Which ranks something seems to be wrong with; nobody's before all have come, or after the end."""
        # Those that a coordinator before this one has met need not come back to it before they are missed.
        if state in ENDED or (state is State.WAITING and not self._roster.all_joined):
            return []
        means = [
            durations["step"].mean_seconds for durations in self._progress.durations.values() if "step" in durations
        ]
        step_seconds = max((mean for mean in means if mean is not None), default=0.0)
        spares = self._roster.spares
        return suspicions(self._roster, spares, now, self._here_since, self._config.suspect_seconds, step_seconds)

    def look(self, state: State, now: float, unix_seconds: float) -> Seen:
        """Name those that are suspected, and ask for stacks at their deadline; if the job must end, tell all ranks."""
        suspected = self.suspicions(state, now)
        instructions, is_overdue = self.evictions.watch(suspected, now)
        if is_overdue:
            instructions += self._stacks.ask(None, now)
        event, why = "not gone on", self.evictions.problem(suspected, now)
        if why is None and state not in ENDED:
            event, why = "not begun", self.beginning.problem(now, self._here_since)
        if why is not None:
            instructions += [Send(identity, m.End(why)) for identity in self._roster.connected()]
            instructions.append(AppendFault({"unix_seconds": unix_seconds, "event": event, "why": why}))
        return Seen(instructions, why)

    def ask_for_stacks(self, tool: bytes, now: float) -> list[Instruction]:
        """On behalf of a tool."""
        return self._stacks.ask(tool, now)

    def take_stacks(self, member: Member, stacks: m.Stacks) -> None:
        """What a rank has answered."""
        self._stacks.answer(member, stacks)

    def give_stacks(self, state: State, now: float, unix_seconds: float) -> list[Instruction]:
        """Hand on what all have answered, or have not in time: to the tool, or as what ranks are evicted with."""
        instructions: list[Instruction] = []
        for tool, rows in self._stacks.finished(now):
            if tool is not None:
                instructions.append(Send(tool, m.StacksReply(rows)))
            else:
                instructions += self.evictions.evict(rows, self.suspicions(state, now), now, unix_seconds)
        return instructions
