"""What a coordinator says when another number of ranks is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from coordinator_fakes import Machine, sent

from ddp_bp.coordinator.status import status_of
from ddp_bp.wire import messages as m


def ask(machine: Machine, world_size: int) -> str:
    """What is against it; empty: nothing."""
    ((identity, answer),) = sent(machine.receive(b"tool", m.ScaleRequest(world_size)), m.Acknowledged)
    assert (identity, answer.of, answer.ok) == (b"tool", "scale", not answer.message)
    return str(answer.message)


def test_a_number_that_the_launcher_can_start_is_noted_for_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, min_workers=2, most_workers=3)
    assert "the job is waiting" in ask(machine, 3)
    machine.join_all()
    for world_size, problem in (
        (5, "expected at most 4, the number of shards"),
        (4, "expected at most 3, the slots of the hosts"),
        (1, "expected at least fault.min_workers = 2"),
    ):
        assert problem in ask(machine, world_size)
        assert status_of(machine.coordinator, machine.now)["wanted_world_size"] is None
    for world_size, wanted in ((3, 3), (2, None), (3, 3)):
        assert ask(machine, world_size) == ""
        assert status_of(machine.coordinator, machine.now)["wanted_world_size"] == wanted
    machine.receive(b"tool", m.StopRequest("resize"))
    told = sent(machine.receive(b"tool", m.StopRequest("user")), m.Stop)
    assert [stop.reason for _, stop in told] == ["user", "user"], "who wants an end prevails"
    assert sent(machine.receive(b"tool", m.StopRequest("respawn")), m.Stop)[0][1].reason == "user"
    assert "the job is stopping" in ask(machine, 3)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_without_a_launcher_that_could_there_is_no_other_number(tmp_path: Path, world_size: int) -> None:
    machine = Machine(tmp_path)
    machine.join_all()
    assert "`ddp-bp train` has not started this job" in ask(machine, world_size)


def test_as_many_as_are_left_can_be_asked_for(tmp_path: Path) -> None:
    machine = Machine(tmp_path, most_workers=3)
    machine.join_all()
    machine.receive(b"0", m.Membership(1, 0, 1, [1]))
    for world_size, wanted in ((1, 1), (2, 2), (1, 1)):
        assert ask(machine, world_size) == ""
        assert status_of(machine.coordinator, machine.now)["wanted_world_size"] == wanted
