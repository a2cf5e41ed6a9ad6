"""A coordinator that is killed, and the one in its place: counters go on, and what was under way is finished."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from coordinator_fakes import Machine, checkpoint_parts, hello, report, sent

from ddp_bp.coordinator import events as e
from ddp_bp.coordinator.eviction import EvictionDesk
from ddp_bp.coordinator.memory import MEMORY_FILE, MemoryFile, read_memory, recall
from ddp_bp.coordinator.metrics import JobCollector
from ddp_bp.wire import messages as m


def counters(machine: Machine) -> dict[tuple[str, str], float]:
    """Every series that may not fall: counters, and what histograms are made of."""
    families = JobCollector(machine.coordinator, lambda: machine.now).collect()
    return {
        (sample.name, repr(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if family.type in ("counter", "histogram")
    }


def killed(machine: Machine, **changes: object) -> Machine:
    """Another coordinator, which knows what was in the file when the one before was killed."""
    run_dir = machine.coordinator.config.run_dir
    another = Machine(run_dir, **changes)
    memory = read_memory(run_dir)
    assert memory is not None
    recall(another.coordinator, memory)
    return another


def remember(machine: Machine) -> None:
    asyncio.run(MemoryFile(machine.coordinator.config.run_dir).keep(machine.coordinator))


def busy(run_dir: Path) -> Machine:
    """A machine in which everything that is counted has happened."""
    machine = Machine(run_dir)
    machine.join_all()
    for rank in (0, 1):
        machine.receive(str(rank).encode(), report(rank, num_nonfinite_steps=1))
        machine.send_checkpoint(rank, 5, "step-5")
    machine.event(e.CheckpointWritten("step-5", "/c/step-5", 100))
    machine.receive(b"0", m.Evaluation(10, 1, float("nan"), 0.5, 100, 0.1))
    machine.event(e.DiskFailed("ledger", "full"))
    machine.event(e.LedgerWritten(9, gaps=((3, 4),)))
    machine.receive(b"stranger", m.Goodbye(0))
    desk: EvictionDesk = machine.coordinator.lookout.evictions
    desk.num_evictions["stuck"] += 1
    return machine


def test_no_counter_falls_and_what_ranks_report_anew_counts_once(tmp_path: Path) -> None:
    machine = busy(tmp_path)
    remember(machine)
    shown = counters(machine)
    # Reported, and not written down: the ranks will say it again.
    machine.receive(b"0", report(0, step=14, num_steps=9, num_samples=288))
    another = killed(machine)
    assert counters(another) == shown
    another.join_all()
    for rank in (1, 0):
        another.receive(str(rank).encode(), report(rank, step=16, num_steps=11, num_samples=352))
    assert another.coordinator.progress.num_steps == 11
    assert another.coordinator.progress.num_samples == 352
    after = counters(another)
    assert all(after[series] >= value for series, value in shown.items())
    # Evaluations are sent again as well; one that was known leaves no second line.
    for step, is_known in ((10, True), (16, False), (16, True)):
        assert (another.receive(b"0", m.Evaluation(step, 1, 0.5, 0.5, 100, 0.1)) == []) == is_known
    assert [step for step, _ in another.coordinator.progress.train_loss.points] == [10, 16]


def test_after_a_restart_of_all_ranks_counting_goes_on_from_there(tmp_path: Path) -> None:
    machine = busy(tmp_path)
    remember(machine)
    shown = counters(machine)
    again = killed(machine, run_id="r1.1", num_restarts=1)
    for rank in (0, 1):
        again.receive(str(rank).encode(), hello(rank, run_id="r1.1", pid=200 + rank))
        again.receive(str(rank).encode(), report(rank, step=8, num_steps=3, num_samples=96))
    progress = again.coordinator.progress
    assert (progress.num_steps, progress.num_samples, progress.num_nonfinite_steps) == (8, 256, 1)
    assert sum(progress.durations[1]["backward"].counts) == 10
    assert all(counters(again)[series] >= value for series, value in shown.items())
    # And that one may be killed as well.
    remember(again)
    third = killed(again, run_id="r1.1", num_restarts=1)
    for rank in (0, 1):
        third.receive(str(rank).encode(), hello(rank, run_id="r1.1", pid=200 + rank))
        third.receive(str(rank).encode(), report(rank, step=9, num_steps=4, num_samples=128))
    assert (third.coordinator.progress.num_steps, third.coordinator.progress.num_samples) == (9, 288)
    assert sum(third.coordinator.progress.durations[1]["backward"].counts) == 10


@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"\x80"])
def test_a_file_that_is_not_there_or_broken_is_no_reason_to_stop(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / MEMORY_FILE).write_bytes(content)
    assert read_memory(tmp_path) is None


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (tmp_path / f".tmp-{MEMORY_FILE}").mkdir()
    remember(machine)
    assert read_memory(tmp_path) is None


def test_what_is_kept_last_is_what_is_there(tmp_path: Path) -> None:
    machine, file = Machine(tmp_path), MemoryFile(tmp_path)

    async def keep_many() -> None:
        tasks = []
        for _ in range(50):
            machine.coordinator.num_rejected += 1
            tasks.append(asyncio.create_task(file.keep(machine.coordinator)))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    asyncio.run(keep_many())
    memory = read_memory(tmp_path)
    assert memory is not None and memory.num_rejected == 50


# ---- a checkpoint that was under way


def test_a_new_coordinator_gets_a_checkpoint_that_was_under_way_from_its_beginning(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    # What is left of the old stream comes from a stranger, and then from a rank that has not begun.
    for message, payloads in checkpoint_parts(1, 5, "final")[2:]:
        assert machine.receive(b"1", message, payloads) == []
    machine.join_all()
    assert machine.send_checkpoint(0, 5, "final") == []
    (write,) = machine.send_checkpoint(1, 5, "final")
    assert isinstance(write, e.WriteCheckpoint)
    # A rank whose connection is lost once more, while the disk is busy, begins again for nothing.
    assert machine.send_checkpoint(1, 5, "final") == []
    done = m.CheckpointDone("final", True, 5, "/c")
    assert sent(machine.event(e.CheckpointWritten("final", "/c", 1)), m.CheckpointDone) == [(b"0", done), (b"1", done)]
    assert sent(machine.send_checkpoint(1, 5, "final"), m.CheckpointDone) == [(b"1", done)]


def test_a_number_of_ranks_is_written_down_before_it_is_acknowledged_and_forgotten_with_the_next_start(
    tmp_path: Path,
) -> None:
    machine = Machine(tmp_path, most_workers=4)
    machine.join_all()
    first, _ = machine.receive(b"tool", m.ScaleRequest(3))
    assert first == e.Remember()
    remember(machine)
    another = killed(machine, most_workers=4)
    assert another.coordinator.scaling.wanted == 3
    assert killed(machine, run_id="r1.1", num_resizes=1).coordinator.scaling.wanted is None


def test_a_rank_that_is_stopped_and_does_not_come_back_is_missed_and_evicted(tmp_path: Path) -> None:
    machine = Machine(tmp_path, world_size=3)
    for rank in range(3):
        told = machine.receive(str(rank).encode(), hello(rank, world_size=3, process=f"name-{rank}"))
    assert e.Remember() in told, "once all are there"
    remember(machine)
    another = killed(machine, world_size=3, parent_fd=0)
    assert another.coordinator.roster.num_joined == 0
    for rank in (0, 2):
        another.receive(str(rank).encode(), hello(rank, world_size=3, process=f"name-{rank}"))
    instructions: list[e.Instruction] = []
    for _ in range(330):
        instructions += another.tick(0.1)
        for identity in (b"0", b"2"):
            another.receive(identity, m.Heartbeat(m.Position(7, "waiting", another.now - 1000)))
    assert [one for one in instructions if isinstance(one, e.Kill)] == [e.Kill(1, 101, "name-1")]


def test_a_stop_waits_for_ranks_that_are_only_known_from_before(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.join_all()
    remember(machine)
    another = killed(machine, parent_fd=0)
    assert not any(isinstance(one, e.Exit) for one in another.event(e.TerminationAsked("SIGTERM")) + another.tick(5))
    assert sent(another.receive(b"0", hello(0)), m.Stop) == [(b"0", m.Stop("SIGTERM"))]


def test_ranks_that_were_given_up_stay_so_and_a_recovery_counts_once(tmp_path: Path) -> None:
    machine = Machine(tmp_path, world_size=3)
    machine.join_all()
    for identity, number in ((b"0", 0), (b"2", 1)):
        machine.receive(identity, m.Membership(1, number, 2, [1]))
    remember(machine)
    another = killed(machine, world_size=3)
    assert sent(another.receive(b"1", hello(1, world_size=3)), m.Refused)
    for identity, number in ((b"0", 0), (b"2", 1)):
        another.receive(identity, hello(int(identity), world_size=3))
        another.receive(identity, m.Membership(1, number, 2, [1]))
    assert another.coordinator.roster.num_recoveries == 1
    assert another.coordinator.state.value == "training"
