"""Ranks die and the others go on: what the coordinator makes of their announcements, in whatever order these come."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from coordinator_fakes import Machine, checkpoint_parts, exits, hello, report, sent, tool_hello

from ddp_bp.coordinator import events as e
from ddp_bp.coordinator.checkpoints import AWAY_SECONDS
from ddp_bp.coordinator.lifecycle import State
from ddp_bp.coordinator.memory import memory_of, recall
from ddp_bp.coordinator.metrics import JobCollector
from ddp_bp.coordinator.status import ready_problem, status_of
from ddp_bp.wire import messages as m


@pytest.fixture
def three(tmp_path: Path) -> Machine:
    """Three ranks that train."""
    machine = Machine(tmp_path, world_size=3)
    machine.join_all()
    return machine


def go_on(machine: Machine, identity: bytes, rank: int, *lost: int, epoch: int = 1) -> list[e.Instruction]:
    return machine.receive(identity, m.Membership(epoch, rank, 3 - len(lost), list(lost)))


def samples(machine: Machine) -> dict[tuple[str, str], float]:
    """The values of all series, by name and rank."""
    families = JobCollector(machine.coordinator, lambda: machine.now).collect()
    return {(sample.name, sample.labels.get("rank", "")): sample.value for one in families for sample in one.samples}


def send_checkpoint(
    machine: Machine, identity: bytes, rank: int, request_id: str, world_size: int, answers: str = ""
) -> list[e.Instruction]:
    instructions = []
    for message, payloads in checkpoint_parts(rank, 5, request_id, world_size, answers):
        instructions += machine.receive(identity, message, payloads)
    return instructions


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("backwards", [False, True])
def test_those_that_are_left_are_numbered_anew_and_shown_as_they_started(
    three: Machine, lost: int, backwards: bool
) -> None:
    for rank in range(3):
        three.receive(str(rank).encode(), report(rank))
    before = samples(three)
    left = [rank for rank in range(3) if rank != lost]
    announcements = [(str(rank).encode(), number) for number, rank in enumerate(left)]
    for i, (identity, number) in enumerate(reversed(announcements) if backwards else announcements):
        assert (ready_problem(three.coordinator) is None) == (i == 0)
        go_on(three, identity, number, lost)
        assert three.coordinator.roster.epoch == 1
    assert ready_problem(three.coordinator) is None
    status = status_of(three.coordinator, three.now)
    assert [(row["rank"], row["current_rank"]) for row in status["ranks"]] == [(left[0], 0), (left[1], 1)]
    assert (status["world_size"], status["membership_epoch"], status["recoveries"]) == (2, 1, 1)
    assert status["lost_ranks"] == [lost]
    after = samples(three)
    assert after["ddp_bp_world_size", ""] == 2
    assert (after["ddp_bp_membership_epoch", ""], after["ddp_bp_recoveries_total", ""]) == (1, 1)
    gauges = ("last_step_age_seconds", "rank_heartbeat_age_seconds", "rank_suspected")
    gone = set(before) - set(after)
    assert gone == {(f"ddp_bp_{name}", str(lost)) for name in gauges}, "gauges go, counters stay"
    assert after["ddp_bp_backward_seconds_count", str(lost)] == 5


def test_a_rank_speaks_under_its_new_number_from_its_announcement_on(three: Machine) -> None:
    go_on(three, b"2", 1, 0)
    three.receive(b"1", report(1, step=11))
    three.receive(b"2", report(1, step=12, num_steps=6, num_samples=192))
    assert three.coordinator.num_rejected == 0
    assert three.receive(b"2", report(2)) == [] and three.coordinator.num_rejected == 1
    go_on(three, b"1", 0, 0)
    three.receive(b"1", report(0, step=13))
    assert three.coordinator.progress.step == 13, "rank 0 counts for all, whoever that is"
    assert three.coordinator.progress.num_steps == 6, "whichever rank says so"
    assert sum(three.coordinator.progress.durations[1]["backward"].counts) == 5
    assert sum(three.coordinator.progress.durations[2]["backward"].counts) == 5
    assert three.receive(b"1", m.LedgerRecords(0, ['{"step": 13}'], 13, "")) == [e.AppendLedger(['{"step": 13}'])]


def test_a_dead_rank_is_a_stranger_and_is_not_let_in_again(three: Machine) -> None:
    go_on(three, b"0", 0, 1)
    assert three.receive(b"1", report(1)) == [] and three.coordinator.num_rejected == 1
    ((_, refused),) = sent(three.receive(b"new", hello(1, world_size=3)), m.Refused)
    assert "rank 1 is taken to be dead" in refused.reason
    assert three.coordinator.roster.connected() == [b"0", b"2"]


@pytest.mark.parametrize(
    "message",
    [
        m.Membership(1, 0, 1, [1]),
        m.Membership(1, 2, 2, [1]),
        m.Membership(1, 0, 2, [0]),
        m.Membership(1, 0, 2, [3]),
        m.Membership(1, 0, 1, [1, 1]),
        m.Membership(1, 1, 2, [1]),
        m.Membership(1, 0, 2, [2]),
        m.Membership(2, 0, 2, [1]),
    ],
)
def test_an_announcement_that_does_not_fit_changes_nothing(three: Machine, message: m.Membership) -> None:
    """After the first one: that rank 2 is rank 1 in epoch 1, and rank 1 lost."""
    go_on(three, b"2", 1, 1)
    before = status_of(three.coordinator, three.now)
    assert three.receive(b"0", message) == []
    assert three.coordinator.num_rejected == 1
    assert status_of(three.coordinator, three.now) == before
    assert three.receive(b"stranger", m.Membership(1, 0, 2, [1])) == []


def test_two_deaths_one_after_the_other(three: Machine) -> None:
    go_on(three, b"0", 0, 1)
    go_on(three, b"2", 0, 0, 1, epoch=2)
    assert three.coordinator.roster.connected() == [b"2"]
    assert ready_problem(three.coordinator) is None
    assert three.coordinator.roster.num_recoveries == 2
    assert go_on(three, b"0", 0, 1) == [] and three.coordinator.num_rejected == 1
    three.receive(b"2", m.Finished(0, {"steps": 100}))
    three.event(e.SummaryWritten())
    (leave,) = three.receive(b"2", m.Goodbye(0))
    assert leave == e.Exit(0)


@pytest.mark.parametrize("order", list(itertools.permutations([(b"0", 0), (b"2", 1)])))
def test_a_checkpoint_under_way_is_dropped_and_the_request_answered_by_the_next(
    three: Machine, order: tuple[tuple[bytes, int], ...]
) -> None:
    three.receive(b"tool", tool_hello())
    three.receive(b"tool", m.CheckpointRequest("mine"))
    send_checkpoint(three, b"0", 0, "step-5", 3, answers="mine")
    (first, number), (second, other) = order
    told = go_on(three, first, number, 1)
    dropped = [(identity, done.ok) for identity, done in sent(told, m.CheckpointDone) if done.request_id == "step-5"]
    assert dropped == [(b"0", False), (b"2", False)]
    # A rank that does not know yet begins its part of it: that is over.
    late = send_checkpoint(three, second, int(second), "step-5", 3)
    assert [(identity, done.ok) for identity, done in sent(late, m.CheckpointDone)] == [(second, False)]
    assert not three.coordinator.checkpoints.receiving
    told += go_on(three, second, other, 1)
    assert sent(told, m.TakeCheckpoint) == [(b"0", m.TakeCheckpoint("mine", "request"))]
    instructions = send_checkpoint(three, b"0", 0, "step-5-1", 2, answers="mine")
    instructions += send_checkpoint(three, b"2", 1, "step-5-1", 2)
    assert any(isinstance(one, e.WriteCheckpoint) for one in instructions)
    done = sent(three.event(e.CheckpointWritten("step-5-1", "/c", 1)), m.CheckpointDone)
    assert [(identity, one.request_id, one.ok) for identity, one in done] == [
        (b"0", "step-5-1", True),
        (b"2", "step-5-1", True),
        (b"tool", "mine", True),
    ]


def test_a_checkpoint_that_has_arrived_whole_is_kept(three: Machine) -> None:
    for rank in range(3):
        send_checkpoint(three, str(rank).encode(), rank, "step-5", 3)
    go_on(three, b"0", 0, 1)
    done = sent(three.event(e.CheckpointWritten("step-5", "/c", 1)), m.CheckpointDone)
    assert [(identity, one.ok) for identity, one in done] == [(b"0", True), (b"2", True)]


def test_a_new_rank_0_is_told_of_the_ledger_and_of_the_summary(three: Machine) -> None:
    go_on(three, b"1", 0, 0)
    told = sent(three.event(e.LedgerWritten(4)), m.Acknowledged)
    assert told == [(identity, m.Acknowledged("ledger", 4)) for identity in (b"1", b"2")], "each may be rank 0 one day"
    three.receive(b"1", m.Finished(0, {"steps": 100}))
    assert sent(three.event(e.SummaryWritten()), m.Acknowledged) == [(b"1", m.Acknowledged("finished"))]


def test_who_comes_back_keeps_its_number(three: Machine) -> None:
    go_on(three, b"0", 0, 1)
    go_on(three, b"2", 1, 1)
    three.event(e.Disconnected(b"2"))
    assert sent(three.receive(b"new", hello(2, world_size=3)), m.Welcome)
    three.receive(b"new", report(1))
    go_on(three, b"new", 1, 1)
    assert three.coordinator.num_rejected == 0
    assert three.coordinator.roster.num_recoveries == 1


def test_a_new_coordinator_learns_who_is_left_from_the_ranks_themselves(tmp_path: Path) -> None:
    machine = Machine(tmp_path, world_size=3)
    for identity, number in ((b"2", 1), (b"0", 0)):
        assert sent(machine.receive(identity, hello(int(identity), world_size=3)), m.Welcome)
        go_on(machine, identity, number, 1)
    assert machine.coordinator.state is State.TRAINING
    assert ready_problem(machine.coordinator) is None


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_checkpoint_waits_only_for_a_while_for_the_part_of_a_rank_that_is_away(
    three: Machine, comes_back: bool
) -> None:
    for rank in (0, 2):
        send_checkpoint(three, str(rank).encode(), rank, "final", 3)
    three.event(e.Disconnected(b"1"))
    three.tick(0.1)
    if comes_back:
        three.tick(AWAY_SECONDS - 0.2)
        three.receive(b"new", hello(1, world_size=3))
    told = [done for _ in range(3) for _, done in sent(three.tick(AWAY_SECONDS), m.CheckpointDone)]
    assert three.coordinator.checkpoints.receiving is comes_back
    assert [(done.request_id, done.ok, done.rank_away) for done in told] == (
        [] if comes_back else [("final", False, True)] * 2
    )


# ---- spares


@pytest.fixture
def with_spares(tmp_path: Path) -> Machine:
    """Two ranks that train, and two that wait."""
    machine = Machine(tmp_path, world_size=2, num_spares=2)
    machine.join_all()
    return machine


def step_in(machine: Machine, identity: bytes, rank: int, *lost: int, epoch: int, spares: list[int]) -> None:
    machine.receive(identity, m.Membership(epoch, rank, 4 - len(lost) - len(spares), list(lost), spares))


def test_spares_are_here_and_are_none_of_the_team(tmp_path: Path) -> None:
    machine = Machine(tmp_path, world_size=2, num_spares=1)
    for rank in (0, 2):
        machine.receive(b"%d" % rank, hello(rank, world_size=3))
    assert ready_problem(machine.coordinator) == "the job is waiting, 1 of 2 ranks have joined; not yet rank 1"
    machine.receive(b"1", hello(1, world_size=3))
    assert machine.coordinator.state is State.TRAINING and ready_problem(machine.coordinator) is None
    status = status_of(machine.coordinator, machine.now)
    assert (status["world_size"], status["full_world_size"], status["spare_ranks"]) == (2, 2, [2])
    assert [(row["current_rank"], row["doing"]) for row in status["ranks"]] == [(0, None), (1, None), (None, "spare")]
    values = samples(machine)
    assert (values["ddp_bp_workers_connected", ""], values["ddp_bp_spares_connected", ""]) == (2, 1)
    machine.event(e.Disconnected(b"2"))
    assert ready_problem(machine.coordinator) is None, "nobody waits for it"
    assert samples(machine)["ddp_bp_spares_connected", ""] == 0


def test_a_spare_is_a_rank_of_the_team_once_it_has_stepped_in(with_spares: Machine) -> None:
    machine, roster = with_spares, with_spares.coordinator.roster
    step_in(machine, b"0", 0, 1, epoch=1, spares=[3])
    assert (roster.world_size, roster.spares, roster.lost) == (2, (3,), (1,))
    assert "rank 2 has not gone on yet" in str(ready_problem(machine.coordinator))
    step_in(machine, b"2", 1, 1, epoch=1, spares=[3])
    assert ready_problem(machine.coordinator) is None
    machine.receive(b"2", report(1, step=12))
    assert machine.coordinator.num_rejected == 0
    step_in(machine, b"2", 0, 0, 1, epoch=2, spares=[])
    step_in(machine, b"3", 1, 0, 1, epoch=2, spares=[])
    assert (roster.world_size, roster.spares) == (2, ())
    status = status_of(machine.coordinator, machine.now)
    assert [(row["rank"], row["current_rank"]) for row in status["ranks"]] == [(2, 0), (3, 1)]


@pytest.mark.parametrize(
    "message",
    [
        m.Membership(1, 0, 2, [1], [2, 3]),
        m.Membership(1, 0, 3, [1], [1]),
        m.Membership(1, 0, 2, [1], [0]),
        m.Membership(1, 0, 2, [], [2, 3]),
        m.Membership(1, 0, 2, [2], [1]),
        m.Membership(1, 0, 2, [1], [4]),
    ],
)
def test_spares_that_do_not_fit_change_nothing(with_spares: Machine, message: m.Membership) -> None:
    assert with_spares.receive(b"0", message) == []
    assert (with_spares.coordinator.num_rejected, with_spares.coordinator.roster.epoch) == (1, 0)


def test_a_coordinator_that_takes_over_knows_the_spares(with_spares: Machine, tmp_path: Path) -> None:
    step_in(with_spares, b"0", 0, 1, epoch=1, spares=[3])
    another = Machine(tmp_path, world_size=2, num_spares=2)
    recall(another.coordinator, memory_of(with_spares.coordinator))
    assert (another.coordinator.roster.world_size, another.coordinator.roster.spares) == (2, (3,))


def test_a_spare_that_has_died_spoils_no_end_in_good_order(with_spares: Machine) -> None:
    machine = with_spares
    machine.event(e.Disconnected(b"2"))
    machine.receive(b"0", m.StopRequest("user"))
    machine.receive(b"0", m.Finished(0, {"steps": 5}))
    machine.event(e.SummaryWritten())
    assert [exits(machine.receive(b"%d" % rank, m.Goodbye(rank))) for rank in (0, 1, 3)] == [[], [], [0]]


def test_a_spare_whose_connection_was_lost_is_one_again_when_it_is_back(with_spares: Machine) -> None:
    with_spares.event(e.Disconnected(b"2"))
    with_spares.receive(b"new", hello(2, world_size=4))
    step_in(with_spares, b"new", 1, 1, epoch=1, spares=[3])
    assert with_spares.coordinator.roster.current(1) is with_spares.coordinator.roster.member(2)
