"""How a job ends for its coordinator: when all is durable, by a stop, a failure, or in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from coordinator_fakes import Machine, exits, hello, report, sent, tool_hello

from ddp_bp.coordinator import events as e
from ddp_bp.coordinator.lifecycle import State
from ddp_bp.wire import messages as m

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
        codes += exits(machine.receive(str(rank).encode(), m.Goodbye(rank)))
    return codes


def test_a_job_ends_without_a_killed_rank_if_the_others_have_said_goodbye(tmp_path: Path) -> None:
    training = Machine(tmp_path, parent_fd=0)
    training.join_all()
    training.event(e.Disconnected(b"1"))
    assert not exits(training.tick(20.0))
    assert not exits(training.receive(b"0", m.Goodbye(0)))
    assert not exits(training.tick(4.9))
    log, *_, leave = training.tick(0.2)
    assert log == e.Log("error", "rank 1 is gone without a word, and the others have said goodbye")
    assert leave == e.Exit(1)


def test_a_coordinator_of_its_own_waits_longer_for_ranks_to_come_back(training: Machine) -> None:
    training.event(e.Disconnected(b"1"))
    training.receive(b"0", m.Goodbye(0))
    assert not exits(training.tick(29.0))
    assert exits(training.tick(1.1)) == [1]


def test_a_rank_that_comes_back_keeps_the_job_from_ending(tmp_path: Path) -> None:
    training = Machine(tmp_path, parent_fd=0)
    training.join_all()
    training.event(e.Disconnected(b"1"))
    training.receive(b"0", m.Goodbye(0))
    training.receive(b"1", m.Heartbeat())
    assert not exits(training.tick(20.0))


def test_a_finished_job_ends_with_the_last_goodbye(training: Machine) -> None:
    (write,) = training.receive(b"0", m.Finished(0, {"steps": 100}))
    assert write == e.WriteSummary({"steps": 100, "checkpoint": None})
    assert training.coordinator.state is State.FINISHED
    assert _say_goodbye(training) == []
    assert exits(training.event(e.SummaryWritten())) == [0]
    assert training.tick(100) == []


def test_a_rank_without_manners_is_not_waited_for_long(training: Machine) -> None:
    training.receive(b"0", m.Finished(0, {"steps": 100}))
    answer = training.event(e.SummaryWritten())
    assert sent(answer, m.Acknowledged) == [(b"0", m.Acknowledged("finished"))]
    training.receive(b"0", m.Goodbye(0))
    assert exits(training.tick(4.9)) == []
    assert exits(training.tick(0.2)) == [0]


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
    assert exits(training.event(e.DiskFailed("ledger", "disk full"))) == [1]


def test_a_stop_reaches_every_rank_and_ends_well(training: Machine) -> None:
    answer = training.receive(b"tool", m.StopRequest("SIGINT"))
    assert sent(answer, m.Stop) == [(b"0", m.Stop("SIGINT")), (b"1", m.Stop("SIGINT"))]
    assert sent(answer, m.Acknowledged) == [(b"tool", m.Acknowledged("stop"))]
    assert training.coordinator.state is State.STOPPING
    training.receive(b"0", m.Finished(0, {"steps": 7}))
    assert training.coordinator.state is State.STOPPING
    training.event(e.SummaryWritten())
    assert _say_goodbye(training) == [0]


def test_a_stop_has_ended_well_once_the_summary_is_durable_whoever_is_killed_then(training: Machine) -> None:
    training.receive(b"tool", m.StopRequest("SIGTERM"))
    training.receive(b"0", m.Finished(0, {"steps": 7}))
    training.event(e.SummaryWritten())
    training.receive(b"0", m.Goodbye(0))
    assert exits(training.event(e.Disconnected(b"1"))) == [0]


def test_a_stop_before_whose_end_a_rank_is_killed_has_not_ended_well(training: Machine) -> None:
    training.receive(b"tool", m.StopRequest("SIGTERM"))
    training.receive(b"0", m.Goodbye(0))
    assert exits(training.event(e.Disconnected(b"1"))) == [1]


def test_a_stop_that_came_too_late_is_a_finished_job(training: Machine) -> None:
    training.receive(b"tool", m.StopRequest("SIGINT"))
    training.receive(b"0", m.Finished(0, {"steps": 100}))
    assert training.coordinator.state is State.FINISHED


def test_a_signal_stops_the_ranks_and_a_second_one_does_not_wait(training: Machine) -> None:
    assert len(sent(training.event(e.TerminationAsked("SIGTERM")), m.Stop)) == 2
    assert exits(training.tick(2)) == []
    training.event(e.TerminationAsked("SIGTERM"))
    assert exits(training.tick(1)) == [1]


def _stop_by_signal(machine: Machine) -> list[e.Instruction]:
    return machine.event(e.TerminationAsked("SIGTERM"))


def _stop_by_tool(machine: Machine) -> list[e.Instruction]:
    return machine.receive(b"tool", m.StopRequest("user"))


@pytest.mark.parametrize("stop", [_stop_by_signal, _stop_by_tool])
def test_a_stop_before_any_rank_waits_for_ranks_to_tell_them(
    machine: Machine, stop: Callable[[Machine], list[e.Instruction]]
) -> None:
    answer = stop(machine)
    assert exits(answer) == []
    assert ["no rank is here yet" in one.text for one in answer if isinstance(one, e.Log)] == [True]
    assert exits(machine.tick(30)) == []
    for rank in (0, 1):
        joined = machine.receive(str(rank).encode(), hello(rank))
        assert sent(joined, m.Welcome) and len(sent(joined, m.Stop)) == 1
    assert exits(machine.tick(20)) == []
    machine.receive(b"0", m.Heartbeat())
    assert exits(machine.tick(20)) == []
    assert _say_goodbye(machine) == [0]


def test_a_stop_that_no_rank_came_to_hear_is_an_error_in_the_end(machine: Machine) -> None:
    _stop_by_signal(machine)
    assert machine.tick(59.9) == []
    (log,) = machine.tick(0.1)
    assert isinstance(log, e.Log) and "no rank joined within 60 s" in log.text
    assert machine.tick(0.4) == []
    assert exits(machine.tick(0.2)) == [1]


@pytest.mark.parametrize("event", [e.TerminationAsked("SIGTERM"), e.ParentGone()])
def test_a_second_signal_and_the_end_of_the_parent_do_not_wait_for_ranks(machine: Machine, event: e.Event) -> None:
    _stop_by_signal(machine)
    assert exits(machine.event(event)) == []
    assert exits(machine.tick(1)) == [1]


def test_a_stop_whose_ranks_are_lost_is_an_error(training: Machine) -> None:
    _stop_by_tool(training)
    training.receive(b"0", m.Goodbye(0))
    assert exits(training.event(e.Disconnected(b"1"))) == [1]


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
    assert exits(training.tick(1)) == [1]


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
    assert exits(training.tick(10)) == []
    last = training.event(e.LedgerWritten(4))
    assert exits(last) == [1]
    done = sent(last, m.CheckpointDone)
    assert done[-1][0] == b"tool" and "the coordinator ends" in done[-1][1].message


def test_heartbeats_go_to_ranks_that_are_here(training: Machine) -> None:
    training.event(e.Disconnected(b"1"))
    assert sent(training.tick(0.5), m.Heartbeat) == []
    assert sent(training.tick(0.5), m.Heartbeat) == [(b"0", m.Heartbeat())]


# ---- whether the end is one for good


@pytest.mark.parametrize(
    ("causes", "is_for_good"),
    [(["SIGTERM"], True), (["user"], True), (["too_few"], True), (["resize"], False), (["respawn", "SIGINT"], True)],
)
def test_a_stop_is_for_good_unless_the_job_is_to_go_on(
    training: Machine, causes: list[m.StopCause], is_for_good: bool
) -> None:
    assert not training.coordinator.ends_for_good
    for cause in causes:
        training.receive(b"tool", m.StopRequest(cause))
    assert training.coordinator.ends_for_good is is_for_good
    training.receive(b"0", m.Finished(0, {"steps": 100}))
    assert training.coordinator.ends_for_good, "a stop that came too late has no consequences"


def test_a_failure_is_not_for_good(training: Machine) -> None:
    training.receive(b"1", m.Failure(1, 7, "ValueError: bad", "Traceback"))
    assert not training.coordinator.ends_for_good


def test_after_the_end_tools_get_answers_and_nobody_else_does(training: Machine) -> None:
    training.receive(b"0", m.Finished(0, {"steps": 100}))
    training.event(e.SummaryWritten())
    assert _say_goodbye(training) == [0]
    assert sent(training.receive(b"tool", tool_hello()), m.Welcome)
    ((_, reply),) = sent(training.receive(b"tool", m.StatusRequest()), m.StatusReply)
    assert reply.status["state"] == "finished"
    assert training.receive(b"tool", m.StopRequest("user")) == [e.Send(b"tool", m.Acknowledged("stop"))]
    assert training.receive(b"0", hello(0)) == training.event(e.TerminationAsked("SIGTERM")) == []
