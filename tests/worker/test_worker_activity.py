"""What a training thread is doing, as another thread reads it from its stack."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from support import wait_until
from worker_cases import DEADLINE_SECONDS, Case, build_rank, classes

from ddp_bp import optim
from ddp_bp.parallel.bucket_choice import BucketChoice
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.mpi import MpiCommunicator
from ddp_bp.parallel.single import SingleCommunicator
from ddp_bp.parallel.threads import run_ranks
from ddp_bp.wire.phases import WAITING, WORKING
from ddp_bp.worker.activity import Activity, phase_of, thread_stacks
from ddp_bp.worker.evaluation import Evaluation

ADAM = Case(classes(34, 6), optimizer=lambda parameters: optim.Adam(parameters, lr=0.05))


def phases_during(function: Callable[[], Any]) -> list[str]:
    """The phase at each call of a Python function, without repetitions."""
    seen: list[str] = []

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and (phase := phase_of(frame)) != "other" and seen[-1:] != [phase]:
            seen.append(phase)

    sys.setprofile(look)
    try:
        function()
    finally:
        sys.setprofile(None)
    return seen


def test_every_phase_of_a_step_is_told_from_the_stack() -> None:
    rank = build_rank(SingleCommunicator(), ADAM)
    seen = phases_during(lambda: rank.step.run(0))
    assert set(seen) == {"compute", "data", "forward", "backward", "exchange", "optimizer"}
    assert set(seen) <= set(WORKING)
    first_shard = [phase for phase in seen[:8] if phase != "compute"]
    assert first_shard[:3] == ["data", "forward", "backward"]
    assert seen[-1] == "exchange" and "optimizer" in seen[-4:]


def test_a_rank_waits_while_gradients_are_exchanged_in_the_background() -> None:
    def phases(communicator: Communicator) -> list[str]:
        rank = build_rank(communicator, dataclasses.replace(ADAM, nodes=[0, 1], buckets=BucketChoice(64, True)))
        exchange = rank.team.exchange
        seen: list[str] = []
        waits = {
            (threading.Condition.wait_for.__code__, exchange.has_arrived.__code__),
            (threading.Thread.join.__code__, exchange.finish.__code__),
        }
        met = set()

        def look(frame: FrameType, event: str, _: object) -> None:
            if event == "call" and frame.f_back is not None and (call := (frame.f_code, frame.f_back.f_code)) in waits:
                met.add(call)
                seen.append(phase_of(frame))

        sys.setprofile(look)
        try:
            rank.step.run(0)
        finally:
            sys.setprofile(None)
        assert exchange.num_rounds == len(exchange.buckets)
        assert met == waits
        return seen

    for seen in run_ranks(2, phases):
        assert set(seen) == {WAITING}


def test_evaluation_is_told_from_training_and_makes_progress() -> None:
    rank = build_rank(SingleCommunicator(), ADAM)
    evaluation = Evaluation(rank.objective, ADAM.dataset, 10, SingleCommunicator(), 1, lambda *_: None)
    seen = phases_during(lambda: evaluation.run(0, has_accuracy=True))
    assert set(seen) == {"evaluation"}
    assert evaluation.num_chunks == 4


class Blocked:
    """In place of mpi4py's communicator: a barrier that waits for the test."""

    def __init__(self) -> None:
        self.entered, self.may_go_on = threading.Event(), threading.Event()

    def Get_rank(self) -> int:  # noqa: N802
        return 0

    def Get_size(self) -> int:  # noqa: N802
        return 2

    def Barrier(self) -> None:  # noqa: N802
        self.entered.set()
        assert self.may_go_on.wait(DEADLINE_SECONDS)


def test_a_rank_inside_mpi_waits_and_since_when_is_known() -> None:
    blocked = Blocked()
    activities: list[Activity] = []
    signs = [0]

    def train() -> None:
        activities.append(Activity(lambda: 7, lambda: signs[0]))
        MpiCommunicator(blocked, can_lose_ranks=False).barrier()  # type: ignore[arg-type]

    thread = threading.Thread(target=train, name="training")
    thread.start()
    try:
        assert blocked.entered.wait(DEADLINE_SECONDS)
        (activity,) = activities
        first = activity.position()
        assert (first.step, first.phase) == (7, WAITING)
        wait_until(lambda: activity.position().seconds > 0.05, "time to pass", DEADLINE_SECONDS)
        signs[0] = 1
        assert activity.position().seconds < 0.05, "a sign of progress"
        stack = next(stack for stack in thread_stacks() if stack.name == "training")
        assert any(frame.startswith("barrier (") and "mpi.py:" in frame for frame in stack.frames)
        assert stack.frames[-1].startswith("wait (")
    finally:
        blocked.may_go_on.set()
        thread.join(DEADLINE_SECONDS)
    assert activity.position().phase == "other", "the thread has ended"
