"""Jobs that do not begin, since some rank does not come or does not get ready, with a clock of the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from coordinator_fakes import Machine, exits, hello, report, sent

from ddp_bp.coordinator import events as e
from ddp_bp.coordinator.lifecycle import State
from ddp_bp.coordinator.status import ready_problem
from ddp_bp.wire import messages as m


class Starting(Machine):
    """A launcher's job of two ranks."""

    def __init__(self, run_dir: Path, **changes: Any) -> None:
        super().__init__(run_dir, **{"parent_fd": 0, "silence_seconds": 30.0, "start_seconds": 600.0, **changes})

    def wait(self, seconds: float, *ranks: int, phase: str = "waiting") -> list[e.Instruction]:
        """Time passes, while heartbeats come from these ranks."""
        instructions: list[e.Instruction] = []
        for _ in range(round(2 * seconds)):
            for rank in ranks:
                instructions += self.receive(b"%d" % rank, m.Heartbeat(m.Position(0, phase, 1.0)))
            instructions += self.tick(0.5)
        return instructions

    @property
    def why(self) -> str:
        return "" if self.coordinator.failure is None else self.coordinator.failure.error


@pytest.fixture
def machine(tmp_path: Path) -> Starting:
    return Starting(tmp_path)


def test_a_rank_that_does_not_come_although_another_one_has_ends_the_start(machine: Starting) -> None:
    machine.wait(100)
    machine.receive(b"0", hello(0))
    assert ready_problem(machine.coordinator) == "the job is waiting, 1 of 2 ranks have joined; not yet rank 1"
    assert sent(machine.wait(29, 0), m.End) == []
    instructions = machine.wait(2, 0)
    ((identity, end),) = sent(instructions, m.End)
    assert identity == b"0" and end.reason == machine.why
    assert "rank 1 has not joined within fault.silence_seconds = 30 of the first one" in machine.why
    (fault,) = [one for one in instructions if isinstance(one, e.AppendFault)]
    assert fault.record["why"] == machine.why and machine.coordinator.state is State.FAILED
    machine.event(e.FaultWritten())
    assert exits(machine.event(e.Disconnected(b"0"))) == [1]


def test_where_none_comes_the_coordinator_ends_as_well(machine: Starting) -> None:
    assert machine.wait(599) == []
    instructions = machine.wait(2)
    assert "no rank has joined within fault.start_seconds = 600" in machine.why
    assert exits(instructions + machine.event(e.FaultWritten())) == [1]


def test_a_spare_that_does_not_come_is_missed_as_well(tmp_path: Path) -> None:
    machine = Starting(tmp_path, num_spares=1)
    for rank in (0, 1):
        machine.receive(b"%d" % rank, hello(rank, world_size=3))
    machine.wait(31, 0, 1)
    assert "rank 2 has not joined" in machine.why


def test_ranks_that_have_come_and_do_not_get_ready_are_named(machine: Starting) -> None:
    machine.join_all()
    machine.receive(b"1", m.Heartbeat(m.Position(0, "other", 1.0)))
    assert machine.wait(599, 0) and machine.why == "" and machine.coordinator.roster.member(1) is not None
    machine.receive(b"1", m.Heartbeat(m.Position(0, "other", 1.0)))
    machine.wait(2, 0)
    assert "no rank has begun to train within fault.start_seconds = 600 (rank 0: waiting; rank 1: other)" in machine.why


def test_a_rank_that_stops_while_all_get_ready_is_evicted(machine: Starting) -> None:
    machine.join_all()
    machine.receive(b"1", m.Heartbeat(m.Position(0, "other", 1.0)))
    killed = [one.rank for one in machine.wait(33, 0) if isinstance(one, e.Kill)]
    assert killed == [1]


@pytest.mark.parametrize("sign", [report(0, num_steps=0, step=0), m.Heartbeat(m.Position(1, "forward", 0.0))])
def test_a_job_that_trains_has_begun(machine: Starting, sign: m.FromWorker) -> None:
    machine.join_all()
    machine.receive(b"0", sign)
    machine.tick()
    machine.wait(700, 0, 1, phase="other")
    assert machine.why == ""


@pytest.mark.parametrize("setting", ["silence_seconds", "start_seconds"])
def test_zero_means_never(tmp_path: Path, setting: str) -> None:
    machine = Starting(tmp_path, **{setting: 0.0})
    if setting == "silence_seconds":
        machine.receive(b"0", hello(0))
    machine.wait(599)
    assert machine.why == ""


def test_whoever_starts_ranks_elsewhere_does_so_when_it_likes(tmp_path: Path) -> None:
    machine = Starting(tmp_path, parent_fd=None)
    machine.wait(5000)
    assert machine.why == ""
