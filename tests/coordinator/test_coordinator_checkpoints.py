"""When a checkpoint is asked for, what becomes of it, and who is told, by scripted ranks."""

from __future__ import annotations

from pathlib import Path

from coordinator_fakes import Machine, checkpoint_parts, report, sent, tool_hello

from ddp_bp.coordinator import events as e
from ddp_bp.coordinator.lifecycle import State
from ddp_bp.wire import messages as m


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


def test_a_disk_that_does_not_answer_is_not_waited_for_without_end(tmp_path: Path) -> None:
    training = Machine(tmp_path, parent_fd=0)
    training.join_all()
    for rank in (0, 1):
        training.send_checkpoint(rank, 5, "step-5")
    assert sent(training.tick(599), m.CheckpointDone) == []
    done = sent(training.tick(2), m.CheckpointDone)
    assert [(identity, one.request_id, one.ok) for identity, one in done] == [
        (b"0", "step-5", False),
        (b"1", "step-5", False),
    ]
    assert "has not answered for over 10 minutes" in done[0][1].message
    # No other one waits in memory beside it; all ranks hear so, once.
    told = [one for rank in (0, 1) for one in sent(training.send_checkpoint(rank, 9, "step-9"), m.CheckpointDone)]
    assert [(identity, one.request_id, one.ok) for identity, one in told] == [
        (b"0", "step-9", False),
        (b"1", "step-9", False),
        (b"1", "step-9", False),
    ]
    assert training.coordinator.checkpoints.record.results == {"failed": 2}
    (log,) = training.event(e.CheckpointWritten("step-5", "/c/step-5", 1234))
    assert isinstance(log, e.Log) and "the disk answers again" in log.text
    record = training.coordinator.checkpoints.record
    assert (record.last_step, record.last_seconds, record.results) == (5, 601, {"failed": 2, "ok": 1})
    training.send_checkpoint(0, 11, "step-11")
    assert isinstance(training.send_checkpoint(1, 11, "step-11")[-1], e.WriteCheckpoint)


def test_a_disk_that_answers_too_late_that_it_has_failed_is_used_again(tmp_path: Path) -> None:
    training = Machine(tmp_path, parent_fd=0)
    training.join_all()
    for rank in (0, 1):
        training.send_checkpoint(rank, 5, "step-5")
    training.tick(601)
    assert training.event(e.DiskFailed("checkpoint", "stale file handle", "step-5")) == []
    training.send_checkpoint(0, 11, "step-11")
    assert isinstance(training.send_checkpoint(1, 11, "step-11")[-1], e.WriteCheckpoint)


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
