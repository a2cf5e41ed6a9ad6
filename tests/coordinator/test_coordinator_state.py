from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coordinator_fakes import Machine, checkpoint_parts, hello, report, sent, tool_hello
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ddp_bp.coordinator import events as e
from ddp_bp.coordinator.lifecycle import State
from ddp_bp.wire import messages as m


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, total_steps=100)


@pytest.fixture
def training(machine: Machine) -> Machine:
    machine.join_all()
    assert machine.coordinator.state is State.TRAINING
    return machine


def _exits(instructions: list[e.Instruction]) -> list[int]:
    return [one.code for one in instructions if isinstance(one, e.Exit)]


# ---- joining


def test_training_begins_with_the_last_rank(machine: Machine) -> None:
    assert sent(machine.receive(b"0", hello(0)), m.Welcome) == [(b"0", m.Welcome(1, "r1", 0))]
    assert machine.coordinator.state is State.WAITING
    machine.receive(b"1", hello(1))
    assert machine.coordinator.state is State.TRAINING


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"protocol_version": 9}, "protocol version 9 .*expected 1"),
        ({"run_id": "other"}, "serves run 'r1', not 'other'"),
        ({"world_size": 3}, "counts 3 ranks, expected 2"),
        ({"rank": 2}, "rank 2: expected 0 to 1"),
        ({"rank": -1}, "rank -1: expected 0 to 1"),
        ({"shards": 8}, "rank 1 counts 8 shards, rank 0 counts 4"),
        ({"rank": 0, "pid": 5}, "rank 0 is already here, as process 100 on node"),
    ],
)
def test_who_does_not_belong_is_refused(machine: Machine, changes: dict[str, Any], reason: str) -> None:
    machine.receive(b"0", hello(0))
    answer = machine.receive(b"x", hello(**{"rank": 1, **changes}))
    ((addressee, refused),) = sent(answer, m.Refused)
    assert addressee == b"x"
    assert re.search(reason, refused.reason)
    assert machine.coordinator.roster.num_joined == 1
    assert machine.coordinator.num_rejected == 1


def test_a_rank_may_come_back_through_another_connection(training: Machine) -> None:
    assert sent(training.receive(b"new", hello(0)), m.Welcome)
    assert training.receive(b"0", report()) == []
    assert training.coordinator.num_rejected == 1
    assert training.coordinator.roster.connected() == [b"new", b"1"]


def test_a_new_process_may_take_the_place_of_a_dead_one(training: Machine) -> None:
    training.event(e.Disconnected(b"1"))
    assert sent(training.receive(b"new", hello(1, pid=999)), m.Welcome)


def test_a_rank_that_joins_while_stopping_is_told_to_stop(machine: Machine) -> None:
    machine.receive(b"0", hello(0))
    machine.receive(b"tool", m.StopRequest("user"))
    assert sent(machine.receive(b"1", hello(1)), m.Stop) == [(b"1", m.Stop("user"))]


# ---- what does not belong


_FROM_RANKS: list[m.FromWorker] = [
    report(0),
    m.LedgerRecords(0, ['{"step": 0}'], 0, ""),
    m.Evaluation(1, 0, 0.5, None, 10, 0.1),
    checkpoint_parts(0, 5, "a")[0][0],
    m.Failure(0, 1, "error", ""),
    m.Finished(0, {}),
    m.Goodbye(0),
]


@pytest.mark.parametrize("message", _FROM_RANKS, ids=m.type_name)
@pytest.mark.parametrize("identity", [b"stranger", b"1"])
def test_messages_under_another_rank_change_nothing(training: Machine, message: m.FromWorker, identity: bytes) -> None:
    before = training.coordinator.roster.member(1)
    assert before is not None
    heard_at = before.heard_at
    training.now += 1
    assert training.receive(identity, message) == []
    assert training.coordinator.num_rejected == 1
    assert training.coordinator.state is State.TRAINING
    assert training.coordinator.progress.step == 0
    assert before.heard_at == heard_at


def test_only_rank_0_speaks_for_the_job(training: Machine) -> None:
    for message in (m.LedgerRecords(1, [], 0, ""), m.Finished(1, {})):
        assert training.receive(b"1", message) == []
    assert training.coordinator.num_rejected == 2
    assert training.coordinator.state is State.TRAINING


def test_checkpoint_parts_of_nothing_are_counted(training: Machine) -> None:
    for message, payloads in checkpoint_parts(0, 5, "a")[1:]:
        assert training.receive(b"0", message, payloads) == []
    assert training.coordinator.num_rejected == len(checkpoint_parts(0, 5, "a")) - 1


def test_unreadable_frames_are_answered_only_to_strangers(training: Machine) -> None:
    assert training.event(e.Unreadable(b"0", "bad")) == []
    assert sent(training.event(e.Unreadable(b"x", "bad")), m.Refused) == [(b"x", m.Refused("bad"))]
    assert training.coordinator.num_rejected == 2


def test_a_heartbeat_of_a_stranger_means_nothing(training: Machine) -> None:
    training.now += 1
    assert sent(training.receive(b"stranger", m.Heartbeat()), m.Introduce) == [(b"stranger", m.Introduce())]
    assert training.coordinator.num_rejected == 1
    assert training.coordinator.roster.heard_at == training.now - 1


# ---- a rank that comes back


def _repeated(instructions: list[e.Instruction]) -> list[m.Message]:
    """What comes before the welcome, all to the same rank."""
    sends = [one for one in instructions if isinstance(one, e.Send)]
    assert {one.identity for one in sends} == {sends[0].identity}
    assert isinstance(sends[-1].message, m.Welcome)
    return [one.message for one in sends[:-1]]


def test_a_rank_that_comes_back_is_told_how_checkpoints_ended(training: Machine) -> None:
    for step in (5, 6):
        for rank in (0, 1):
            training.send_checkpoint(rank, step, f"step-{step}")
    training.event(e.DiskFailed("checkpoint", "disk full", "step-5"))
    training.event(e.Disconnected(b"1"))
    training.event(e.CheckpointWritten("step-6", "/c/step-6", 1))
    assert _repeated(training.receive(b"new", hello(1))) == [
        m.CheckpointDone("step-5", False, 5, message="disk full"),
        m.CheckpointDone("step-6", True, 6, "/c/step-6"),
    ]


def test_only_the_latest_outcomes_are_repeated(training: Machine) -> None:
    for step in range(300):
        training.send_checkpoint(0, step, f"step-{step}")
    repeated = _repeated(training.receive(b"new", hello(1)))
    assert 3 <= len(repeated) <= 20
    assert [one.request_id for one in repeated if isinstance(one, m.CheckpointDone)][-2:] == ["step-297", "step-298"]


def test_rank_0_that_comes_back_is_told_what_is_durable(training: Machine) -> None:
    training.event(e.LedgerWritten(4))
    assert _repeated(training.receive(b"new", hello(0))) == [m.Acknowledged("ledger", 4)]
    assert _repeated(training.receive(b"other", hello(1))) == [m.Acknowledged("ledger", 4)]
    training.receive(b"new", m.Finished(0, {"steps": 100}))
    assert _repeated(training.receive(b"newer", hello(0))) == [m.Acknowledged("ledger", 4)]
    assert sent(training.event(e.SummaryWritten()), m.Acknowledged) == [(b"newer", m.Acknowledged("finished"))]
    assert _repeated(training.receive(b"last", hello(0))) == [m.Acknowledged("ledger", 4), m.Acknowledged("finished")]
    refused = sent(training.receive(b"x", hello(1, pid=999)), m.Refused)
    assert len(refused) == 1


def test_a_summary_that_failed_is_repeated_as_failed(training: Machine) -> None:
    training.receive(b"0", m.Finished(0, {"steps": 100}))
    training.event(e.DiskFailed("summary", "disk full"))
    failed = m.Acknowledged("finished", ok=False, message="disk full")
    assert _repeated(training.receive(b"new", hello(0))) == [failed]


def test_another_process_is_not_told_what_is_over(training: Machine) -> None:
    training.event(e.LedgerWritten(4))
    training.send_checkpoint(0, 5, "step-5")
    training.send_checkpoint(0, 6, "step-6")
    training.event(e.Disconnected(b"0"))
    assert _repeated(training.receive(b"new", hello(0, pid=999))) == []


# ---- reports


def test_reports_say_what_has_been_done_in_all_and_count_once(training: Machine) -> None:
    (record,) = training.receive(b"0", report(0, step=10))
    assert isinstance(record, e.AppendMetrics)
    assert record.record["step"] == 10 and record.record["train_loss"] == 0.5
    assert training.receive(b"1", report(1, step=10, num_nonfinite_steps=2)) == []
    assert training.receive(b"0", report(0, step=10)) == []
    progress = training.coordinator.progress
    assert (progress.num_steps, progress.num_samples, progress.num_nonfinite_steps) == (5, 160, 2)
    assert sum(progress.durations[1]["backward"].counts) == 5
    training.receive(b"1", report(1, step=11, num_steps=6, num_samples=192, num_nonfinite_steps=2))
    training.receive(b"0", report(0, step=11, num_steps=6, num_samples=192, num_nonfinite_steps=2))
    assert (progress.num_steps, progress.num_samples, progress.num_nonfinite_steps) == (6, 192, 2)


def test_another_process_in_the_place_of_a_rank_counts_from_0(training: Machine) -> None:
    for rank in (0, 1):
        training.receive(str(rank).encode(), report(rank))
    training.event(e.Disconnected(b"1"))
    training.receive(b"new", hello(1, pid=999))
    training.receive(b"new", report(1, num_steps=2, num_samples=64))
    progress = training.coordinator.progress
    assert (progress.num_steps, progress.num_samples) == (7, 224)
    assert sum(progress.durations[1]["backward"].counts) == 10


def test_phases_of_another_version_are_passed_over(training: Machine) -> None:
    training.receive(b"0", report(0, phases={"dreaming": report().phases["step"]}))
    assert training.coordinator.progress.durations[0] == {}


def test_the_rate_is_that_of_the_last_seconds(training: Machine) -> None:
    progress = training.coordinator.progress
    assert progress.samples_per_second is None
    num_samples = 0
    for i in range(100):
        rate = 100 if i < 50 else 1000
        num_samples += rate // 4
        training.receive(b"0", report(0, step=i, sent_at_unix_seconds=1e9 + 0.25 * i, num_samples=num_samples))
    assert progress.samples_per_second == pytest.approx(1000)


def test_long_histories_are_thinned_evenly(training: Machine) -> None:
    for i in range(3000):
        training.receive(b"0", report(0, step=i, num_steps=i + 1, scalars={"train_loss": float(i)}))
    steps = [step for step, _ in training.coordinator.progress.train_loss.points]
    gaps = {b - a for a, b in itertools.pairwise(steps)}
    assert 200 <= len(steps) <= 400 and len(gaps) == 1 and steps[0] == 0 and steps[-1] > 2900


# ---- checkpoints


def test_all_parts_make_a_checkpoint(training: Machine) -> None:
    assert training.send_checkpoint(0, 5, "step-5") == []
    (write,) = training.send_checkpoint(1, 5, "step-5")
    assert isinstance(write, e.WriteCheckpoint)
    assert write.manifest["step"] == 5 and set(write.model) == {"0.weight", "0.bias"}
    training.now += 2
    done = training.event(e.CheckpointWritten("step-5", "/c/step-5", 1234))
    expected = m.CheckpointDone("step-5", True, 5, "/c/step-5")
    assert sent(done, m.CheckpointDone) == [(b"0", expected), (b"1", expected)]
    record = training.coordinator.checkpoints.record
    assert (record.last_step, record.last_bytes, record.last_seconds) == (5, 1234, 2)
    assert record.last_success_unix_seconds == 1_700_000_002
    assert sum(record.duration_counts) == 1


def test_the_disk_may_fail_and_training_goes_on(training: Machine) -> None:
    for rank in (0, 1):
        training.send_checkpoint(rank, 5, "step-5")
    answer = training.event(e.DiskFailed("checkpoint", "disk full", "step-5"))
    assert [done for _, done in sent(answer, m.CheckpointDone)] == [
        m.CheckpointDone("step-5", False, 5, message="disk full")
    ] * 2
    assert training.coordinator.state is State.TRAINING
    assert training.coordinator.checkpoints.record.results["failed"] == 1
    assert training.coordinator.durability.num_failures["checkpoint"] == 1


def test_a_bad_part_drops_the_whole_checkpoint(training: Machine) -> None:
    parts = checkpoint_parts(0, 5, "step-5")
    for message, payloads in parts[:2]:
        training.receive(b"0", message, payloads)
    (_, first), (_, second) = sent(training.receive(b"0", *parts[1]), m.CheckpointDone)
    assert first == second and not first.ok and "some of which came before" in first.message
    assert training.receive(b"0", *parts[2]) == []
    late = sent(training.receive(b"1", *checkpoint_parts(1, 5, "step-5")[0]), m.CheckpointDone)
    assert [(identity, one.ok) for identity, one in late] == [(b"1", False)]
    assert not training.coordinator.checkpoints.receiving


def test_a_newer_checkpoint_drops_an_older_one(training: Machine) -> None:
    training.send_checkpoint(0, 5, "step-5")
    dropped = sent(training.send_checkpoint(0, 6, "step-6"), m.CheckpointDone)
    assert dropped[0][1].request_id == "step-5" and not dropped[0][1].ok
    late = sent(training.send_checkpoint(1, 5, "step-5"), m.CheckpointDone)
    assert [(identity, one.request_id) for identity, one in late] == [(b"1", "step-5")]
    (write,) = training.send_checkpoint(1, 6, "step-6")
    assert isinstance(write, e.WriteCheckpoint) and write.request_id == "step-6"
    assert training.coordinator.checkpoints.record.results == {"dropped": 1}


def test_a_late_rank_does_not_bring_back_an_older_one(training: Machine) -> None:
    training.send_checkpoint(1, 6, "step-6")
    dropped = sent(training.send_checkpoint(0, 5, "step-5"), m.CheckpointDone)
    assert {done.request_id for _, done in dropped} == {"step-5"}
    (write,) = training.send_checkpoint(0, 6, "step-6")
    assert isinstance(write, e.WriteCheckpoint) and write.request_id == "step-6"


def test_a_checkpoint_that_stalls_is_dropped(tmp_path: Path) -> None:
    machine = Machine(tmp_path, parent_fd=0)
    machine.join_all()
    machine.send_checkpoint(0, 5, "step-5")
    assert sent(machine.tick(59), m.CheckpointDone) == []
    machine.receive(b"1", *checkpoint_parts(1, 5, "step-5")[0])
    assert sent(machine.tick(59), m.CheckpointDone) == []
    machine.receive(b"0", report())
    dropped = sent(machine.tick(2), m.CheckpointDone)
    assert "nothing arrived for 60 s; rank 1 is not through" in dropped[0][1].message


def test_time_makes_a_checkpoint_due(tmp_path: Path) -> None:
    machine = Machine(tmp_path, checkpoint_every_seconds=10.0, parent_fd=0)
    assert sent(machine.tick(100), m.TakeCheckpoint) == []
    machine.join_all()
    assert sent(machine.tick(9), m.TakeCheckpoint) == []
    assert sent(machine.tick(1), m.TakeCheckpoint) == [(b"0", m.TakeCheckpoint("timed-1", "time"))]
    assert sent(machine.tick(30), m.TakeCheckpoint) == []
    for rank in (0, 1):
        machine.send_checkpoint(rank, 5, "timed-1")
    assert sent(machine.tick(15), m.TakeCheckpoint) == []
    machine.event(e.CheckpointWritten("timed-1", "/c", 1))
    assert sent(machine.tick(9), m.TakeCheckpoint) == []
    assert [take.request_id for _, take in sent(machine.tick(1), m.TakeCheckpoint)] == ["timed-2"]


def test_a_tool_is_told_how_its_checkpoint_ended(training: Machine) -> None:
    assert sent(training.receive(b"tool", tool_hello()), m.Welcome)
    asked = training.receive(b"tool", m.CheckpointRequest("mine"))
    assert sent(asked, m.TakeCheckpoint) == [(b"0", m.TakeCheckpoint("mine", "request"))]
    again = sent(training.receive(b"tool", m.CheckpointRequest("mine")), m.CheckpointDone)
    assert "used before" in again[0][1].message
    for rank in (0, 1):
        training.send_checkpoint(rank, 5, "mine")
    done = sent(training.event(e.CheckpointWritten("mine", "/c", 1)), m.CheckpointDone)
    assert [identity for identity, _ in done] == [b"0", b"1", b"tool"]
    assert training.coordinator.roster.num_joined == 2


def test_a_checkpoint_of_another_name_may_answer_requests(training: Machine) -> None:
    training.receive(b"early", m.CheckpointRequest("first"))
    training.receive(b"tool", m.CheckpointRequest("second"))
    training.receive(b"late", m.CheckpointRequest("third"))
    for rank in (1, 0):
        training.send_checkpoint(rank, 5, "step-5", answers="second" if rank == 0 else "")
    done = sent(training.event(e.CheckpointWritten("step-5", "/c", 1)), m.CheckpointDone)
    told = [(identity, one.request_id) for identity, one in done]
    assert told == [(b"0", "step-5"), (b"1", "step-5"), (b"early", "first"), (b"tool", "second")]
    assert all(one.ok and one.step == 5 for _, one in done)
    for rank in (0, 1):
        training.send_checkpoint(rank, 6, "step-6", answers="third" if rank == 0 else "")
    done = sent(training.event(e.DiskFailed("checkpoint", "disk full", "step-6")), m.CheckpointDone)
    assert done[-1] == (b"late", m.CheckpointDone("third", False, 6, message="disk full"))
    assert not training.coordinator.checkpoints.in_progress


def test_a_request_answered_too_late_is_told_so(training: Machine) -> None:
    training.receive(b"tool", m.CheckpointRequest("mine"))
    training.send_checkpoint(1, 5, "step-5")
    training.send_checkpoint(1, 6, "step-6")
    done = sent(training.send_checkpoint(0, 5, "step-5", answers="mine"), m.CheckpointDone)
    assert [(identity, one.request_id, one.ok) for identity, one in done] == [
        (b"0", "step-5", False),
        (b"tool", "mine", False),
    ]


def test_time_goes_on_after_a_checkpoint_of_another_name(tmp_path: Path) -> None:
    machine = Machine(tmp_path, checkpoint_every_seconds=10.0)
    machine.join_all()
    assert sent(machine.tick(10), m.TakeCheckpoint)
    for rank in (0, 1):
        machine.send_checkpoint(rank, 5, "step-5", answers="timed-1" if rank == 0 else "")
    machine.event(e.CheckpointWritten("step-5", "/c", 1))
    assert sent(machine.tick(10), m.TakeCheckpoint) == [(b"0", m.TakeCheckpoint("timed-2", "time"))]


def test_a_tool_does_not_wait_for_ever(training: Machine) -> None:
    training.receive(b"tool", m.CheckpointRequest("mine"))
    training.now += 601
    training.receive(b"0", report())
    done = sent(training.tick(), m.CheckpointDone)
    assert done[-1][0] == b"tool" and "did not begin" in done[-1][1].message


def test_without_rank_0_nobody_is_asked(training: Machine) -> None:
    training.event(e.Disconnected(b"0"))
    done = sent(training.receive(b"tool", m.CheckpointRequest("mine")), m.CheckpointDone)
    assert done[0][0] == b"tool" and "rank 0 is not connected" in done[0][1].message


# ---- ledger


def test_the_ledger_is_acknowledged_when_durable(training: Machine) -> None:
    (append,) = training.receive(b"0", m.LedgerRecords(0, ['{"step": 4}'], 4, "ab"))
    assert append == e.AppendLedger(['{"step": 4}'])
    told = sent(training.event(e.LedgerWritten(4)), m.Acknowledged)
    assert told == [(b"0", m.Acknowledged("ledger", 4)), (b"1", m.Acknowledged("ledger", 4))]


def test_a_ledger_that_cannot_be_written_is_tried_again(training: Machine) -> None:
    training.receive(b"0", m.LedgerRecords(0, ['{"step": 4}'], 4, "ab"))
    (log,) = training.event(e.DiskFailed("ledger", "disk full"))
    assert isinstance(log, e.Log) and log.level == "error" and "disk full" in log.text
    assert e.AppendLedger(()) not in training.tick(0.5)
    assert e.AppendLedger(()) in training.tick(0.5)
    assert training.event(e.DiskFailed("ledger", "disk full")) == []
    assert e.AppendLedger(()) in training.tick(1)
    assert sent(training.event(e.LedgerWritten(4)), m.Acknowledged)
    assert e.AppendLedger(()) not in training.tick(2)
    assert training.coordinator.durability.num_failures["ledger"] == 2


def test_steps_without_ledger_lines_are_told_and_training_goes_on(training: Machine) -> None:
    training.receive(b"0", m.LedgerRecords(0, ['{"step": 8}'], 8, "ab"))
    log, acknowledged, _ = training.event(e.LedgerWritten(8, gaps=((3, 7),)))
    assert isinstance(log, e.Log) and log.level == "warning" and "steps 3 to 7" in log.text
    assert acknowledged == e.Send(b"0", m.Acknowledged("ledger", 8))
    assert training.coordinator.durability.num_ledger_gaps == 1
    assert training.coordinator.state is State.TRAINING


# ---- the end


def _say_goodbye(machine: Machine) -> list[int]:
    codes = []
    for rank in (0, 1):
        codes += _exits(machine.receive(str(rank).encode(), m.Goodbye(rank)))
    return codes


def test_a_finished_job_ends_with_the_last_goodbye(training: Machine) -> None:
    (write,) = training.receive(b"0", m.Finished(0, {"steps": 100}))
    assert write == e.WriteSummary({"steps": 100, "checkpoint": None})
    assert training.coordinator.state is State.FINISHED
    assert _say_goodbye(training) == []
    assert _exits(training.event(e.SummaryWritten())) == [0]
    assert training.tick(100) == []


def test_a_rank_without_manners_is_not_waited_for_long(training: Machine) -> None:
    training.receive(b"0", m.Finished(0, {"steps": 100}))
    answer = training.event(e.SummaryWritten())
    assert sent(answer, m.Acknowledged) == [(b"0", m.Acknowledged("finished"))]
    training.receive(b"0", m.Goodbye(0))
    assert _exits(training.tick(4.9)) == []
    assert _exits(training.tick(0.2)) == [0]


def test_a_summary_that_cannot_be_written_is_an_error(training: Machine) -> None:
    training.receive(b"0", m.Finished(0, {"steps": 100}))
    answer = training.event(e.DiskFailed("summary", "disk full"))
    assert sent(answer, m.Acknowledged) == [(b"0", m.Acknowledged("finished", ok=False, message="disk full"))]
    assert _say_goodbye(training) == [1]


def test_a_last_ledger_line_gets_a_last_try(training: Machine) -> None:
    training.receive(b"0", m.LedgerRecords(0, ['{"step": 4}'], 4, "ab"))
    training.event(e.DiskFailed("ledger", "disk full"))
    training.receive(b"0", m.Finished(0, {"steps": 100}))
    training.event(e.SummaryWritten())
    training.receive(b"0", m.Goodbye(0))
    assert training.receive(b"1", m.Goodbye(1)) == [e.AppendLedger(())]
    assert _exits(training.event(e.DiskFailed("ledger", "disk full"))) == [1]


def test_a_stop_reaches_every_rank_and_ends_well(training: Machine) -> None:
    answer = training.receive(b"tool", m.StopRequest("SIGINT"))
    assert sent(answer, m.Stop) == [(b"0", m.Stop("SIGINT")), (b"1", m.Stop("SIGINT"))]
    assert sent(answer, m.Acknowledged) == [(b"tool", m.Acknowledged("stop"))]
    assert training.coordinator.state is State.STOPPING
    training.receive(b"0", m.Finished(0, {"steps": 7}))
    assert training.coordinator.state is State.STOPPING
    training.event(e.SummaryWritten())
    assert _say_goodbye(training) == [0]


def test_a_stop_that_came_too_late_is_a_finished_job(training: Machine) -> None:
    training.receive(b"tool", m.StopRequest("SIGINT"))
    training.receive(b"0", m.Finished(0, {"steps": 100}))
    assert training.coordinator.state is State.FINISHED


def test_a_signal_stops_the_ranks_and_a_second_one_does_not_wait(training: Machine) -> None:
    assert len(sent(training.event(e.TerminationAsked("SIGTERM")), m.Stop)) == 2
    assert _exits(training.tick(2)) == []
    training.event(e.TerminationAsked("SIGTERM"))
    assert _exits(training.tick(1)) == [1]


def _stop_by_signal(machine: Machine) -> list[e.Instruction]:
    return machine.event(e.TerminationAsked("SIGTERM"))


def _stop_by_tool(machine: Machine) -> list[e.Instruction]:
    return machine.receive(b"tool", m.StopRequest("user"))


@pytest.mark.parametrize("stop", [_stop_by_signal, _stop_by_tool])
def test_a_stop_before_any_rank_waits_for_ranks_to_tell_them(
    machine: Machine, stop: Callable[[Machine], list[e.Instruction]]
) -> None:
    answer = stop(machine)
    assert _exits(answer) == []
    assert ["no rank is here yet" in one.text for one in answer if isinstance(one, e.Log)] == [True]
    assert _exits(machine.tick(30)) == []
    for rank in (0, 1):
        joined = machine.receive(str(rank).encode(), hello(rank))
        assert sent(joined, m.Welcome) and len(sent(joined, m.Stop)) == 1
    assert _exits(machine.tick(20)) == []
    machine.receive(b"0", m.Heartbeat())
    assert _exits(machine.tick(20)) == []
    assert _say_goodbye(machine) == [0]


def test_a_stop_that_no_rank_came_to_hear_is_an_error_in_the_end(machine: Machine) -> None:
    _stop_by_signal(machine)
    assert machine.tick(59.9) == []
    (log,) = machine.tick(0.1)
    assert isinstance(log, e.Log) and "no rank joined within 60 s" in log.text
    assert machine.tick(0.4) == []
    assert _exits(machine.tick(0.2)) == [1]


@pytest.mark.parametrize("event", [e.TerminationAsked("SIGTERM"), e.ParentGone()])
def test_a_second_signal_and_the_end_of_the_parent_do_not_wait_for_ranks(machine: Machine, event: e.Event) -> None:
    _stop_by_signal(machine)
    assert _exits(machine.event(event)) == []
    assert _exits(machine.tick(1)) == [1]


def test_a_stop_whose_ranks_are_lost_is_an_error(training: Machine) -> None:
    _stop_by_tool(training)
    training.receive(b"0", m.Goodbye(0))
    assert _exits(training.event(e.Disconnected(b"1"))) == [1]


def test_the_first_failure_is_kept(training: Machine) -> None:
    (log,) = training.receive(b"1", m.Failure(1, 7, "ValueError: bad", "Traceback"))
    assert log == e.Log("info", "rank 1 failed at step 7: ValueError: bad")
    training.receive(b"0", m.Failure(0, 7, "RemoteError", ""))
    assert training.receive(b"0", m.Finished(0, {})) == []
    assert training.coordinator.failure is not None and training.coordinator.failure.rank == 1
    refused = sent(training.receive(b"1", hello(1)), m.Refused)
    assert "the job has failed" in refused[0][1].reason
    assert _say_goodbye(training) == [1]


def test_ranks_that_leave_without_a_word_are_a_failure(training: Machine) -> None:
    assert _say_goodbye(training) == [1]


def test_silence_of_all_ranks_ends_a_job_without_parent(training: Machine) -> None:
    training.tick(29)
    training.receive(b"1", report(1))
    training.tick(29)
    assert training.coordinator.state is State.TRAINING
    first = training.tick(1)
    assert [one.text for one in first if isinstance(one, e.Log) and one.level == "error"] == [
        "nothing was heard of any rank for 30 s; were they killed?"
    ]
    assert training.coordinator.state is State.FAILED
    assert [one for one in training.tick(0.2) if isinstance(one, e.Log)] == []
    assert _exits(training.tick(1)) == [1]


def test_a_heartbeat_is_a_sign_of_life_and_no_step(training: Machine) -> None:
    training.receive(b"1", report(1))
    member = training.coordinator.roster.member(1)
    assert member is not None
    step_at, report_at = member.step_at, member.report_at
    for _ in range(10):
        training.tick(29)
        assert training.receive(b"1", m.Heartbeat()) == []
    assert training.coordinator.state is State.TRAINING
    assert (member.step_at, member.report_at) == (step_at, report_at)
    assert member.heard_at == training.now
    assert training.coordinator.num_rejected == 0


def test_with_a_parent_silence_is_no_end(tmp_path: Path) -> None:
    machine = Machine(tmp_path, parent_fd=0)
    machine.join_all()
    machine.tick(1000)
    assert machine.coordinator.state is State.TRAINING


def test_the_end_of_the_parent_waits_for_the_disk(training: Machine) -> None:
    training.receive(b"0", m.LedgerRecords(0, ['{"step": 4}'], 4, "ab"))
    training.receive(b"tool", m.CheckpointRequest("mine"))
    training.event(e.ParentGone())
    assert _exits(training.tick(10)) == []
    last = training.event(e.LedgerWritten(4))
    assert _exits(last) == [1]
    done = sent(last, m.CheckpointDone)
    assert done[-1][0] == b"tool" and "the coordinator ends" in done[-1][1].message


def test_heartbeats_go_to_ranks_that_are_here(training: Machine) -> None:
    training.event(e.Disconnected(b"1"))
    assert sent(training.tick(0.5), m.Heartbeat) == []
    assert sent(training.tick(0.5), m.Heartbeat) == [(b"0", m.Heartbeat())]


# ---- anything may happen


_IDENTITIES = st.sampled_from([b"0", b"1", b"x"])
_RANKS = st.integers(-1, 2)


class _Anything(RuleBasedStateMachine):
    run_dir: Path

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(self.run_dir, checkpoint_every_seconds=5.0, parent_fd=0)
        self.exited = False

    def _take(self, instructions: list[e.Instruction]) -> None:
        assert not (self.exited and instructions), "instructions after Exit"
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
@given(st.lists(st.sampled_from(_FROM_RANKS), max_size=10), st.lists(st.floats(0, 10), min_size=10, max_size=10))
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
