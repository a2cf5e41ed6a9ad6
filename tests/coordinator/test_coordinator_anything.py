"""Whatever events come in whatever order: the coordinator stands, and does the same again."""

from __future__ import annotations

from pathlib import Path

import pytest
from coordinator_fakes import FROM_RANKS, Machine, checkpoint_parts, hello, report
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ddp_bp.coordinator import events as e
from ddp_bp.wire import messages as m

_IDENTITIES = st.sampled_from([b"0", b"1", b"x"])
_RANKS = st.integers(-1, 2)

_ANSWERS = (m.Welcome, m.Refused, m.StatusReply, m.Acknowledged)


class _Anything(RuleBasedStateMachine):
    run_dir: Path

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(self.run_dir, checkpoint_every_seconds=5.0, parent_fd=0)
        self.exited = False

    def _take(self, instructions: list[e.Instruction]) -> None:
        answers = all(isinstance(one, e.Send) and isinstance(one.message, _ANSWERS) for one in instructions)
        assert answers or not self.exited, "instructions after Exit, other than answers to tools"
        for i, instruction in enumerate(instructions):
            if isinstance(instruction, e.Exit):
                assert i == len(instructions) - 1
                self.exited = True

    @rule(identity=_IDENTITIES, rank=_RANKS, world=st.sampled_from([2, 2, 2, 3]), pid=st.integers(1, 2))
    def someone_says_hello(self, identity: bytes, rank: int, world: int, pid: int) -> None:
        role = "tool" if rank < 0 else "worker"
        self._take(self.machine.receive(identity, hello(rank, world_size=world, pid=pid, role=role)))

    @rule()
    def everyone_joins(self) -> None:
        for rank in (0, 1):
            self._take(self.machine.receive(str(rank).encode(), hello(rank)))

    @rule(identity=_IDENTITIES, rank=st.integers(0, 2), which=st.integers(0, 11))
    def someone_speaks(self, identity: bytes, rank: int, which: int) -> None:
        messages: list[m.FromWorker] = [
            report(rank),
            m.LedgerRecords(rank, ['{"step": 0}'], 0, ""),
            m.Evaluation(1, 0, 0.5, None, 10, 0.1),
            m.Failure(rank, 1, "error", ""),
            m.Finished(rank, {"steps": "many"}),
            m.Goodbye(rank),
            m.StatusRequest(),
            m.CheckpointRequest("asked"),
            m.Heartbeat(),
            m.StopRequest("user"),
            m.Membership(1, 0, 1, [rank]),
            m.Membership(2, 0, 1, [1]),
        ]
        self._take(self.machine.receive(identity, messages[which]))

    @rule(identity=_IDENTITIES, rank=st.integers(0, 1), step=st.integers(1, 2), part=st.integers(0, 5))
    def a_part_of_a_checkpoint_comes(self, identity: bytes, rank: int, step: int, part: int) -> None:
        message, payloads = checkpoint_parts(rank, step, f"step-{step}")[part]
        self._take(self.machine.receive(identity, message, payloads))

    @rule(rank=st.integers(0, 1), step=st.integers(1, 3))
    def a_rank_sends_a_checkpoint(self, rank: int, step: int) -> None:
        self._take(self.machine.send_checkpoint(rank, step, f"whole-{step}"))

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self._take(self.machine.tick(seconds))

    @rule(
        event=st.sampled_from(
            [
                e.LedgerWritten(None),
                e.LedgerWritten(3),
                e.LedgerWritten(9, gaps=((4, 7),)),
                e.MetricsWritten(),
                e.SummaryWritten(),
                e.CheckpointWritten("whole-1", "/c", 1, "a problem"),
                e.CheckpointWritten("never", "/c", 1),
                e.DiskFailed("ledger", "full"),
                e.DiskFailed("metrics", "full"),
                e.DiskFailed("summary", "full"),
                e.DiskFailed("checkpoint", "full", "whole-2"),
                e.DiskFailed("checkpoint", "full"),
            ]
        )
    )
    def the_disk_answers(self, event: e.Event) -> None:
        self._take(self.machine.event(event))

    @rule(identity=_IDENTITIES)
    def a_connection_breaks(self, identity: bytes) -> None:
        self._take(self.machine.event(e.Disconnected(identity)))

    @rule(identity=_IDENTITIES)
    def rubbish_comes(self, identity: bytes) -> None:
        self._take(self.machine.event(e.Unreadable(identity, "bad")))

    @rule(event=st.sampled_from([e.TerminationAsked("SIGTERM"), e.TerminationAsked("SIGINT"), e.ParentGone()]))
    def the_end_comes(self, event: e.Event) -> None:
        self._take(self.machine.event(event))

    @invariant()
    def it_can_say_how_it_is(self) -> None:
        coordinator = self.machine.coordinator
        assert len(coordinator.roster.connected()) <= 2
        assert coordinator.num_rejected >= 0


def test_no_sequence_of_events_breaks_it(tmp_path: Path) -> None:
    class Here(_Anything):
        run_dir = tmp_path

    run_state_machine_as_test(Here, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(FROM_RANKS), max_size=10), st.lists(st.floats(0, 10), min_size=10, max_size=10))
def test_the_same_events_give_the_same_instructions(
    tmp_path_factory: pytest.TempPathFactory, messages: list[m.FromWorker], waits: list[float]
) -> None:
    run_dir = tmp_path_factory.getbasetemp()

    def play() -> list[str]:
        machine = Machine(run_dir)
        machine.join_all()
        told = []
        for message, wait in zip(messages, waits, strict=False):
            told += machine.receive(b"0", message) + machine.tick(wait)
        return [repr(one) for one in told]

    assert play() == play()
