"""The link against a coordinator that follows a script: what arrives, in which order, and what happens without one."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
from support import LOOPBACKS, wait_until
from worker_cases import DEADLINE_SECONDS, ScriptedCoordinator, background, hello, report

from ddp_bp.errors import AddressError, DeadlineError, DistributedError, WireError
from ddp_bp.wire import messages as m
from ddp_bp.wire.phases import WAITING
from ddp_bp.wire.process import process_name
from ddp_bp.worker import link as link_module
from ddp_bp.worker.activity import thread_stacks
from ddp_bp.worker.link import EVICTED_EXIT_CODE, CoordinatorLink

WELCOME = m.Welcome(m.PROTOCOL_VERSION, "run", 5)
Coordinate = Callable[..., ScriptedCoordinator]


def link_threads() -> int:
    return sum(thread.name == "coordinator link" for thread in threading.enumerate())


def open_files() -> set[str]:
    gc.collect()
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def coordinate() -> Iterator[Coordinate]:
    """Makes coordinators; at the end nothing of them and of the links may be left."""
    made: list[ScriptedCoordinator] = []

    def make(*arguments: str) -> ScriptedCoordinator:
        made.append(ScriptedCoordinator(*arguments))
        return made[-1]

    yield make
    for coordinator in made:
        coordinator.close()
    assert link_threads() == 0


@pytest.fixture
def coordinator(coordinate: Coordinate) -> ScriptedCoordinator:
    return coordinate()


def connect(coordinator: ScriptedCoordinator, kind: type[CoordinatorLink] = CoordinatorLink) -> CoordinatorLink:
    link = kind(coordinator.address, hello())
    with background(lambda: link.open(DEADLINE_SECONDS)) as welcomes:
        assert coordinator.receive() == (hello(), [])
        coordinator.send(WELCOME)
    assert welcomes == [WELCOME]
    return link


@pytest.fixture
def link(coordinator: ScriptedCoordinator) -> Iterator[CoordinatorLink]:
    link = connect(coordinator)
    yield link
    link.close()


def done(request_id: str) -> m.CheckpointDone:
    return m.CheckpointDone(request_id, True, 3, "/somewhere")


def is_done(message: m.FromCoordinator) -> m.CheckpointDone | None:
    return message if isinstance(message, m.CheckpointDone) else None


# ---- opening and closing


def test_it_introduces_itself_says_goodbye_last_and_leaves_nothing_behind(coordinate: Coordinate) -> None:
    coordinator = coordinate()
    connect(coordinator).close()  # a first one, for what ZeroMQ opens once
    assert isinstance(coordinator.receive()[0], m.Goodbye)
    before = open_files()
    links = [connect(coordinator) for _ in range(3)]
    assert link_threads() == 3
    for link in links:
        link.post(report(1))
        link.close()
    assert link_threads() == 0
    wait_until(lambda: open_files() <= before, "the files of the links to be closed", DEADLINE_SECONDS)
    kinds = [type(coordinator.receive()[0]) for _ in range(6)]
    assert sorted(kinds, key=str) == [m.Goodbye] * 3 + [m.Report] * 3
    assert kinds[-1] is m.Goodbye
    for link in links:
        link.close()
        link.post(report(2))  # late, and harmless


def test_a_link_that_was_never_opened_holds_nothing() -> None:
    before = open_files()
    CoordinatorLink("tcp://127.0.0.1:1", hello()).close()
    assert open_files() <= before


def test_a_coordinator_that_refuses_is_quoted(coordinator: ScriptedCoordinator) -> None:
    link = CoordinatorLink(coordinator.address, hello(rank=1))
    refused = pytest.raises(DistributedError, match="rank 1: the coordinator refused it: another run")
    with refused, background(lambda: link.open(DEADLINE_SECONDS)):
        coordinator.receive()
        coordinator.send(m.Refused("another run"))
    link.close()


def test_a_coordinator_that_does_not_answer_is_a_deadline_error(coordinator: ScriptedCoordinator) -> None:
    link = CoordinatorLink(coordinator.address, hello())
    began = monotonic()
    with pytest.raises(DeadlineError, match=r"rank 0: waited for its welcome .* silent for 0\.2 s") as raised:
        link.open(0.2)
    assert coordinator.address in str(raised.value)
    assert monotonic() - began < 2
    link.close()


def test_an_address_that_is_none_is_named_and_the_rank_can_still_end_in_good_order() -> None:
    link = CoordinatorLink("nonsense", hello())
    with pytest.raises(AddressError, match=r"rank 0: 'nonsense' is no address .* expected tcp://HOST:PORT"):
        link.open(DEADLINE_SECONDS)
    wait_until(lambda: link_threads() == 0, "the thread to end", DEADLINE_SECONDS)
    before = open_files()
    reading, writing = os.pipe()  # which may get the number that the link had
    link.post(m.Failure(0, 0, "", ""))
    link.close()
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)
    assert open_files() <= before


@pytest.mark.parametrize("host", LOOPBACKS)
def test_addresses_of_either_ip_version(coordinate: Coordinate, host: str) -> None:
    connect(coordinate(f"tcp://[{host}]:*" if ":" in host else f"tcp://{host}:*")).close()


class Late(CoordinatorLink):
    """Closed at the one moment at which the thread has found the queue empty and not looked further."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.found_empty, self.go_on = threading.Event(), threading.Event()
        self.armed = False

    def _next_outgoing(self):
        outgoing = super()._next_outgoing()
        if outgoing is None and self.armed:
            self.armed = False
            self.found_empty.set()
            assert self.go_on.wait(DEADLINE_SECONDS)
        return outgoing

    def _notify_thread(self) -> None:
        super()._notify_thread()
        if self._closing:
            self.go_on.set()


def test_what_is_posted_while_the_thread_looks_away_is_still_sent(coordinator: ScriptedCoordinator) -> None:
    link = connect(coordinator, Late)
    assert isinstance(link, Late)
    link.armed = True
    coordinator.send(m.Stop("user"))  # wakes the thread up
    assert link.found_empty.wait(DEADLINE_SECONDS)
    link.post(m.Failure(0, 3, "the reason", ""))
    link.close()
    assert [type(message) for message in coordinator.receive_until(m.Goodbye)] == [m.Failure, m.Goodbye]


# ---- sending


def test_messages_and_streams_arrive_whole_and_in_order(
    coordinator: ScriptedCoordinator, link: CoordinatorLink
) -> None:
    payloads = [np.full(50_000, number, np.float32) for number in range(20)]
    asked_for = []

    def stream() -> Iterator[tuple[m.FromWorker, tuple[memoryview, ...]]]:
        for number, payload in enumerate(payloads):
            asked_for.append(threading.current_thread().name)
            yield m.CheckpointChunk("x", 0, "parameters", number), (payload.data.cast("B"),)

    link.post(m.Evaluation(1, 0, 0.5, None, 3, 0.1))
    link.post_stream(stream())
    link.post(m.CheckpointEnd("x", 0))
    link.post(m.Evaluation(2, 0, 0.5, None, 3, 0.1))
    assert coordinator.receive()[0] == m.Evaluation(1, 0, 0.5, None, 3, 0.1)
    for number, payload in enumerate(payloads):
        message, received = coordinator.receive()
        assert message == m.CheckpointChunk("x", 0, "parameters", number)
        assert received == [payload.tobytes()]
    assert coordinator.receive()[0] == m.CheckpointEnd("x", 0)
    assert coordinator.receive()[0] == m.Evaluation(2, 0, 0.5, None, 3, 0.1)
    assert set(asked_for) == {"coordinator link"}, "made while they are sent, and not by the training thread"


def test_of_reports_that_wait_only_the_newest_are_sent_and_of_everything_else_all(
    coordinator: ScriptedCoordinator, link: CoordinatorLink
) -> None:
    may_go_on = threading.Event()

    def stalled() -> Iterator[tuple[m.FromWorker, tuple[()]]]:
        assert may_go_on.wait(DEADLINE_SECONDS)
        yield m.CheckpointEnd("stalled", 0), ()

    link.post_stream(stalled())
    for step in range(100):
        link.post(report(step))
        if step % 25 == 0:
            link.post(m.LedgerRecords(0, [f'{{"step":{step}}}'], step, ""))
    may_go_on.set()
    link.close()
    messages = coordinator.receive_until(m.Goodbye)
    assert messages[0] == m.CheckpointEnd("stalled", 0)
    assert [each.last_step for each in messages if isinstance(each, m.LedgerRecords)] == [0, 25, 50, 75]
    assert [each.step for each in messages if isinstance(each, m.Report)] == list(range(92, 100))


def test_a_message_that_cannot_be_encoded_is_told_to_whoever_waits_and_to_no_step(
    coordinator: ScriptedCoordinator, link: CoordinatorLink
) -> None:
    link.post(m.Finished(0, {"loss": np.float32(1)}))
    with pytest.raises(WireError, match="finished"):
        link.wait(is_done, DEADLINE_SECONDS, "something")
    wait_until(lambda: link_threads() == 0, "the thread to end", DEADLINE_SECONDS)
    link.post(report(1))
    assert link.take() == []


# ---- receiving


def test_waiting_leaves_other_messages_in_their_order(coordinator: ScriptedCoordinator, link: CoordinatorLink) -> None:
    coordinator.send(m.Stop("user"), m.Heartbeat(), done("1"), m.TakeCheckpoint("r", "tool"), done("2"))
    assert link.wait(is_done, DEADLINE_SECONDS, "a checkpoint") == done("1")
    assert link.wait(is_done, DEADLINE_SECONDS, "a checkpoint") == done("2")
    assert link.take() == [m.Stop("user"), m.TakeCheckpoint("r", "tool")]
    assert link.take() == []


def test_heartbeats_keep_a_wait_alive_and_silence_ends_it(
    coordinator: ScriptedCoordinator, link: CoordinatorLink
) -> None:
    began = monotonic()
    with background(lambda: link.wait(is_done, 0.5, "a checkpoint")) as results:
        pause = threading.Event()
        while monotonic() - began < 1.0:
            coordinator.send(m.Heartbeat())
            pause.wait(0.05)
        coordinator.send(done("1"))
    assert results == [done("1")]
    began = monotonic()
    with pytest.raises(DeadlineError, match=r"rank 0: waited for a checkpoint .* silent for 0\.3 s"):
        link.wait(is_done, 0.3, "a checkpoint")
    assert monotonic() - began >= 0.3


def test_a_coordinator_that_is_there_and_does_not_answer_is_waited_for_up_to_a_limit(
    coordinator: ScriptedCoordinator, link: CoordinatorLink
) -> None:
    with pytest.raises(DeadlineError, match=r"rank 0: waited 0\.3 s for a summary .* which is there"):
        link.wait(is_done, DEADLINE_SECONDS, "a summary", 0.3)


@pytest.mark.parametrize("frames", [[b"\x00nonsense"], [b""], [b"\xc1", b"payload"]])
def test_what_is_no_message_is_a_wire_error(
    coordinator: ScriptedCoordinator, link: CoordinatorLink, frames: list[bytes]
) -> None:
    coordinator.send_frames(*frames)
    with pytest.raises(WireError, match="the coordinator"):
        link.wait(is_done, DEADLINE_SECONDS, "a checkpoint")


def test_a_coordinator_that_comes_back_meets_the_rank_again_and_gets_what_waited(
    coordinate: Coordinate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_HELLO_AGAIN_SECONDS", 0.2)
    first = coordinate()
    link = connect(first)
    membership = m.Membership(1, 0, 1, [1])
    link.announce(membership)
    assert first.receive()[0] == membership
    first.close()
    link.post(report(1))
    again = coordinate(first.address)
    seen: list[m.FromWorker] = []
    while not {type(message) for message in seen} >= {m.Hello, m.Membership, m.Report}:
        seen.append(again.receive()[0])
    assert seen[seen.index(hello()) + 1] == membership
    again.send(m.Stop("SIGTERM"))
    wait_until(lambda: m.Stop("SIGTERM") in link.take(), "the command of the new coordinator", DEADLINE_SECONDS)
    link.close()


def test_what_is_to_be_sent_again_waits_for_the_welcome_of_a_new_coordinator(
    coordinate: Coordinate, coordinator: ScriptedCoordinator
) -> None:
    link = link_to(coordinator)
    records = [m.LedgerRecords(0, [f'{{"step":{step}}}'], step, "") for step in (0, 1)]
    stream = [(m.CheckpointEnd("x", 0), ())]

    def send_again() -> None:
        for message in records:
            link.post(message)
        link.post_stream(iter(stream))

    link.on_return(send_again)
    link.post(records[0])
    assert next_of(coordinator, m.LedgerRecords) == records[0]
    address = coordinator.address
    coordinator.close()
    another = coordinate(address)
    another.receive()
    # It is asked who it is before it has missed any heartbeat. An earlier introduction must be a second ago.
    wait_until(lambda: monotonic() - link._introduced > 1.0, "a second to pass", DEADLINE_SECONDS)
    next_of(another, m.Heartbeat)
    another.send(m.Introduce())
    assert next_of(another, m.Hello) == hello()
    link.post(records[1])
    link.post_stream(iter(stream))
    link.post(report(2))
    seen = another.receive_until(m.Report)
    assert not any(isinstance(message, (m.LedgerRecords, m.CheckpointEnd)) for message in seen)
    another.send(done("1"), WELCOME)
    assert link.wait(is_done, DEADLINE_SECONDS, "what came before the welcome") == done("1")
    with pytest.raises(DeadlineError):
        link.wait(is_done, 0.2, "nothing")
    kinds = (m.LedgerRecords, m.CheckpointEnd)
    assert [one for one in another.receive_until(m.CheckpointEnd) if isinstance(one, kinds)] == [*records, stream[0][0]]
    link.post(records[1])
    assert next_of(another, m.LedgerRecords) == records[1]
    another.send(WELCOME)
    wait_until(lambda: link.take() == [] and not link._is_back, "the welcome to be taken", DEADLINE_SECONDS)
    link.close()


# ---- what it does by itself, whatever the training thread is doing


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes with which a process would have ended."""
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise RuntimeError("the process has ended")

    monkeypatch.setattr(link_module.os, "_exit", leave)
    return codes


def link_to(coordinator: ScriptedCoordinator, **settings: float) -> CoordinatorLink:
    link = CoordinatorLink(coordinator.address, hello(), heartbeat_seconds=0.02, **settings)
    with background(lambda: link.open(DEADLINE_SECONDS)):
        coordinator.receive()
        coordinator.send(WELCOME)
    return link


def next_of(coordinator: ScriptedCoordinator, kind: type) -> Any:
    return coordinator.receive_until(kind)[-1]


def test_heartbeats_say_what_the_training_thread_is_doing_also_while_much_waits_to_be_sent(
    coordinator: ScriptedCoordinator,
) -> None:
    link = link_to(coordinator)
    assert next_of(coordinator, m.Heartbeat) == m.Heartbeat()
    position, may_end = m.Position(3, "forward", 1.5), threading.Event()
    link.watch(lambda: position, list)

    def stream() -> Iterator[tuple[m.FromWorker, tuple[memoryview, ...]]]:
        while not may_end.is_set():
            yield m.CheckpointChunk("x", 0, "parameters", 0), (memoryview(bytes(1000)),)

    link.post_stream(stream())
    next_of(coordinator, m.CheckpointChunk)
    for _ in range(3):
        while next_of(coordinator, m.Heartbeat).position is None:
            pass
    may_end.set()
    link.close()


def test_stacks_are_told_from_the_other_thread(coordinator: ScriptedCoordinator) -> None:
    link = link_to(coordinator)
    link.watch(lambda: m.Position(0, "forward", 0.0), thread_stacks)
    coordinator.send(m.TellStacks("stacks-1"))
    answer = next_of(coordinator, m.Stacks)
    assert answer.request_id == "stacks-1"
    main = answer.threads[0]
    assert main.name == "MainThread"
    assert any(frame.startswith("test_stacks_are_told_from_the_other_thread (") for frame in main.frames)
    assert "coordinator link" in [thread.name for thread in answer.threads]
    link.close()


def test_a_process_that_does_not_answer_is_killed_for_the_coordinator_and_no_other_one(
    coordinator: ScriptedCoordinator,
) -> None:
    link = link_to(coordinator)
    with subprocess.Popen(["sleep", "600"]) as stopped, subprocess.Popen(["sleep", "600"]) as other:
        try:
            stopped.send_signal(signal.SIGSTOP)
            coordinator.send(m.KillProcess(other.pid, process_name(stopped.pid)))
            coordinator.send(m.KillProcess(stopped.pid, process_name(stopped.pid)))
            assert stopped.wait(DEADLINE_SECONDS) == -signal.SIGKILL
            assert other.poll() is None
        finally:
            stopped.kill()
            other.kill()
    link.close()


@pytest.mark.parametrize("message", [m.End("rank 0 was evicted"), m.Refused("rank 0 was evicted")])
def test_who_is_told_that_it_is_no_part_of_the_job_any_more_ends(
    coordinator: ScriptedCoordinator, ended: list[int], capfd: pytest.CaptureFixture[str], message: m.FromCoordinator
) -> None:
    link = link_to(coordinator)
    coordinator.send(message)
    wait_until(lambda: ended, "the end", DEADLINE_SECONDS)
    assert ended == [EVICTED_EXIT_CODE]
    assert "ddp-bp: rank 0 ends: rank 0 was evicted" in capfd.readouterr().err
    link.close()


def test_an_orphan_that_waits_for_others_ends_and_one_that_works_does_not(
    coordinate: Coordinate, ended: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    coordinator = coordinate()
    link, began = link_to(coordinator, orphan_seconds=0.2), monotonic()
    phase = "forward"
    link.watch(lambda: m.Position(3, phase, monotonic() - began), list)
    coordinator.close()
    wait_until(lambda: monotonic() - began > 0.5, "some time to pass", DEADLINE_SECONDS)
    assert ended == []
    phase = WAITING
    wait_until(lambda: ended, "the end", DEADLINE_SECONDS)
    assert "heard nothing of the coordinator" in capfd.readouterr().err
    link.close()
