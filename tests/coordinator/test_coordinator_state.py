"""What a coordinator makes of ranks that come, speak out of turn, come back, and report."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from coordinator_fakes import FROM_RANKS, Machine, checkpoint_parts, hello, report, sent

from ddp_bp.coordinator import events as e
from ddp_bp.coordinator.lifecycle import State
from ddp_bp.wire import messages as m

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


@pytest.mark.parametrize("message", FROM_RANKS, ids=m.type_name)
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
