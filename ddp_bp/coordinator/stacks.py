"""Asking every rank where its threads are, and collecting what those say that can.

Knows neither who wants to know nor what a stack means.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import msgspec

from ddp_bp.coordinator.events import Instruction, Send
from ddp_bp.coordinator.roster import Member, Roster
from ddp_bp.wire.messages import Stacks, TellStacks, ThreadStack

ANSWER_SECONDS: Final = 1.5
"""How long is waited for a rank; one that answers at all does so within milliseconds, unless it holds Python's lock."""

Purpose = TypeVar("Purpose")


@dataclass
class _Question(Generic[Purpose]):
    purpose: Purpose
    asked_at: float
    asked: set[int]
    threads: dict[int, list[ThreadStack]] = field(default_factory=dict)


class StacksDesk(Generic[Purpose]):
    """Questions that are under way."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._questions: dict[str, _Question[Purpose]] = {}
        self._num_asked = 0

    def ask(self, purpose: Purpose, now: float) -> list[Instruction]:
        """Asks all ranks; `finished` gives the answers together with `purpose`."""
        self._num_asked += 1
        name = f"stacks-{self._num_asked}"
        connected = [(rank, member) for rank, member in self._roster if member.connected]
        self._questions[name] = _Question(purpose, now, {rank for rank, _ in connected})
        return [Send(member.identity, TellStacks(name)) for _, member in connected]

    def answer(self, member: Member, message: Stacks) -> None:
        """A rank has answered."""
        if (question := self._questions.get(message.request_id)) is not None:
            question.threads[member.hello.rank] = message.threads

    def finished(self, now: float) -> list[tuple[Purpose, list[dict[str, Any]]]]:
        """What all have answered, or have not in time: a row for each rank."""
        done = [
            name
            for name, question in self._questions.items()
            if question.asked <= set(question.threads) or now - question.asked_at >= ANSWER_SECONDS
        ]
        questions = [self._questions.pop(name) for name in done]
        return [(question.purpose, self._rows(question, now)) for question in questions]

    def _rows(self, question: _Question[Purpose], now: float) -> list[dict[str, Any]]:
        return [
            {**whereabouts(rank, member, now), "threads": msgspec.to_builtins(question.threads.get(rank))}
            for rank, member in self._roster
        ]


def whereabouts(rank: int, member: Member, now: float) -> dict[str, Any]:
    """Which process a rank is, and what it was doing when it last said so."""
    position = member.position
    return {
        "rank": rank,
        "hostname": member.hello.hostname,
        "pid": member.hello.pid,
        "step": member.step if position is None else position.step,
        "phase": None if position is None else position.phase,
        "phase_seconds": None if position is None else position.seconds,
        "heartbeat_age_seconds": now - member.heard_at,
    }
