"""The stopwatch against a plain count, with a clock of the test's own."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_bp.wire.phases import PHASE_BUCKETS_SECONDS, PHASES
from ddp_bp.worker import phases
from ddp_bp.worker.phases import Phase, PhaseClock

LAPS = [phase for phase in Phase if phase is not Phase.STEP]


class Time:
    """A clock that stands still until it is told to go on. It counts in steps that binary fractions hold exactly."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Iterator[Time]:
    clock = Time()
    monkeypatch.setattr(phases, "perf_counter", clock)
    return clock


def run_step(clock: PhaseClock, time: Time, laps: list[tuple[Phase, float]]) -> None:
    clock.start()
    for phase, seconds in laps:
        time.now += seconds
        clock.lap(phase)
    clock.stop()


ticks = st.integers(0, 2**22).map(lambda number: number * 2.0**-16)  # 15 us .. 64 s
steps = st.lists(st.lists(st.tuples(st.sampled_from(LAPS), ticks), max_size=8), max_size=12)


@settings(max_examples=60, deadline=None)
@given(first=steps, second=steps, num_rows=st.integers(1, 5))
def test_counts_and_sums_are_those_of_a_plain_count(first: list, second: list, num_rows: int) -> None:
    """With so few rows that they fill up and are folded again and again; and `totals` go on."""
    with pytest.MonkeyPatch.context() as patch:
        time = Time()
        patch.setattr(phases, "perf_counter", time)
        patch.setattr(phases, "_ROWS", num_rows)
        clock = PhaseClock(PHASE_BUCKETS_SECONDS)
        done: list = []
        for part in (first, second):
            for laps in part:
                run_step(clock, time, laps)
            done += part
            totals = clock.totals()
            assert set(totals) == set(PHASES)
            for phase in Phase:
                durations = [sum(seconds for lap, seconds in laps if phase in (lap, Phase.STEP)) for laps in done]
                counts = [0] * (len(PHASE_BUCKETS_SECONDS) + 1)
                for seconds in durations:
                    counts[bisect_left(PHASE_BUCKETS_SECONDS, seconds)] += 1
                counted, total = totals[phase.name.lower()]
                assert counted == counts and total == sum(durations)


def test_waiting_for_ranks_is_not_in_the_backward_time(time: Time) -> None:
    clock = PhaseClock([1.0, 2.0])
    run_step(clock, time, [(Phase.BACKWARD, 0.5), (Phase.RANK_WAIT, 8.0), (Phase.BACKWARD, 1.0)])
    totals = clock.totals()
    assert totals["backward"] == ([0, 1, 0], 1.5)
    assert totals["rank_wait"] == ([0, 0, 1], 8.0)
    assert totals["step"] == ([0, 0, 1], 9.5)


def test_a_step_that_did_not_end_is_not_counted(time: Time) -> None:
    clock = PhaseClock([1.0])
    clock.start()
    time.now += 5.0
    clock.lap(Phase.FORWARD)
    run_step(clock, time, [(Phase.FORWARD, 0.25)])
    assert clock.totals()["forward"] == ([1, 0], 0.25)


def test_a_duration_on_a_bound_is_in_the_bucket_below_it(time: Time) -> None:
    clock = PhaseClock([0.25, 0.5])
    for seconds in (0.25, 0.5, 0.75):
        run_step(clock, time, [(Phase.OPTIMIZER, seconds)])
    assert clock.totals()["optimizer"] == ([1, 1, 1], 1.5)
    assert clock.totals()["optimizer"] == ([1, 1, 1], 1.5)


def test_the_phases_are_those_of_the_wire() -> None:
    assert tuple(phase.name.lower() for phase in Phase) == PHASES
