"""Runs some steps of a job with every operation watched, and gathers what the ranks saw. Starts and shows nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec

from ddp_bp.engine.profiling import Call, ModuleCall, Span
from ddp_bp.nn.profiling import profiled
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.wire.phases import PHASE_BUCKETS_SECONDS
from ddp_bp.worker.assemble import Job
from ddp_bp.worker.compose import compose
from ddp_bp.worker.failures import print_failure
from ddp_bp.worker.phases import Phase, PhaseClock

WARM_UP_STEPS = 1


@dataclass(slots=True)
class PhaseSpan:
    """One stretch of a phase, by its small name as in `wire.phases`; "step" spans all others of its step."""

    phase: str
    span: Span


@dataclass(slots=True)
class RankProfile:
    """What one rank saw of `num_steps` steps. Its times are seconds of `perf_counter`.

    `unix_offset_nanoseconds` makes Unix time of them: what the clocks of several machines have in common.
    """

    rank: int
    num_steps: int
    unix_offset_nanoseconds: int
    phases: list[PhaseSpan]
    calls: list[Call]
    module_calls: list[ModuleCall]


class SpanClock(PhaseClock):
    """A stopwatch that also keeps every lap."""

    def __init__(self) -> None:
        super().__init__(PHASE_BUCKETS_SECONDS)
        self.spans: list[PhaseSpan] = []

    def lap(self, phase: Phase) -> None:
        began = self._last
        super().lap(phase)
        self.spans.append(PhaseSpan(phase.name.lower(), (began, self._last)))

    def stop(self) -> None:
        super().stop()
        # What lies between the last lap and here belongs to the step, too.
        ended = self._began + self._current[Phase.STEP]
        self.spans.append(PhaseSpan(Phase.STEP.name.lower(), (self._began, ended)))


def measure(communicator: Communicator, job: Job, num_steps: int) -> list[RankProfile]:
    """Train `job` for one step to warm up and `num_steps` watched ones; what each rank saw of these. Collective.

    The steps are those that training starts with, to the bit. Nothing is saved, evaluated or reported.

    Raises:
        RankFailure: on a rank whose computation raised; RemoteError on the others. See `TrainingStep.run`.
    """
    rank, clock = communicator.rank, SpanClock()
    step = compose(communicator, job, clock, lambda error, number: _show_failure(error, rank, number)).team.step
    for number in range(WARM_UP_STEPS):
        job.schedule.apply(number)
        step.run(number)
    clock.spans.clear()
    with profiled(job.objective.model) as recorder:
        for number in range(WARM_UP_STEPS, WARM_UP_STEPS + num_steps):
            job.schedule.apply(number)
            step.run(number)
    # Whole numbers, because Unix time as a float has steps of a quarter of a microsecond.
    offset = time.time_ns() - time.perf_counter_ns()
    own = RankProfile(rank, num_steps, offset, clock.spans, recorder.calls, recorder.module_calls)
    gathered = communicator.allgather_bytes(encode([own]))
    return [profile for data in gathered for profile in decode(data)]


def encode(profiles: list[RankProfile]) -> bytes:
    """Profiles as a message between processes."""
    return msgspec.msgpack.encode(profiles)


def decode(data: bytes) -> list[RankProfile]:
    """What `encode` made a message of."""
    return msgspec.msgpack.decode(data, type=list[RankProfile])


def _show_failure(error: BaseException, rank: int, step: int) -> None:
    print_failure(error, rank, step)
