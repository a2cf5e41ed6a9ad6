"""What a seed stands for: disturbances and deaths, the same every time, and for ranks that there are."""

from __future__ import annotations

import statistics

import pytest

from ddp_bp.chaos.points import draw_deaths
from ddp_bp.chaos.schedule import DEFAULT_KINDS, KINDS, MOST_DISTURBANCES, Disturbance, Kind, draw_schedule
from ddp_bp.worker.death import POINTS, Point, decode_deaths, encode_deaths


def test_a_seed_stands_for_one_schedule() -> None:
    schedule = draw_schedule(3, KINDS, 2.0, 4)
    assert schedule == draw_schedule(3, KINDS, 2.0, 4)
    assert schedule != draw_schedule(4, KINDS, 2.0, 4)
    assert len(schedule) == MOST_DISTURBANCES
    assert all(sorted(one.order) == [0, 1, 2, 3] and one.wait_seconds > 0 for one in schedule)


def test_all_kinds_and_ranks_come_up_and_waits_have_the_mean_that_was_asked_for() -> None:
    schedule = [one for seed in range(100) for one in draw_schedule(seed, DEFAULT_KINDS, 2.0, 4)]
    assert {one.kind for one in schedule} == set(DEFAULT_KINDS)
    assert {one.order[0] for one in schedule} == {0, 1, 2, 3}
    assert 1.8 < statistics.mean(one.wait_seconds for one in schedule) < 2.2
    stops = [one for one in schedule if one.kind == "stop"]
    assert 0.15 < sum(one.pause_seconds is None for one in stops) / len(stops) < 0.35
    assert all(one.pause_seconds is None for one in schedule if one.kind != "stop")


@pytest.mark.parametrize(
    ("kind", "left", "expected"),
    [
        ("kill", [0, 1, 2, 3], [2]),
        ("kill", [0, 1], [0]),
        ("stop", [1, 3], [3]),
        ("kill-two", [0, 1, 2, 3], [2, 0]),
        ("kill-two", [1], [1]),
        ("kill-all-but-one", [0, 1, 2, 3], [2, 0, 3]),
        ("kill-all-but-one", [1], []),
        ("coordinator", [0, 1, 2, 3], []),
        ("launcher", [0, 1, 2, 3], []),
        ("fill", [0, 1, 2, 3], []),
    ],
)
def test_victims_are_among_those_that_are_left(kind: Kind, left: list[int], expected: list[int]) -> None:
    assert Disturbance(1.0, kind, (2, 0, 3, 1)).victims(left) == expected


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("num_ranks", [3, 4, 7])
def test_somebody_is_left_of_those_that_die_at_a_point(point: Point, num_ranks: int) -> None:
    drawn = [draw_deaths(seed, point, num_ranks, 20) for seed in range(200)]
    assert drawn == [draw_deaths(seed, point, num_ranks, 20) for seed in range(200)]
    for deaths in drawn:
        ranks = [death.rank for death in deaths]
        assert ranks == sorted(set(ranks)) and set(ranks) < set(range(num_ranks))
        assert len({death.step for death in deaths}) == 1 and 1 <= deaths[0].step <= 17
        points = {death.point for death in deaths}
        assert point in points and len(points) == (2 if point == "recovery" else 1)
        assert decode_deaths(encode_deaths(deaths)) == deaths
    assert {len(deaths) for deaths in drawn} >= {2, num_ranks - 1}
    assert {death.rank for deaths in drawn for death in deaths} == set(range(num_ranks))


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_a_short_run_has_a_step_to_die_in(num_steps: int) -> None:
    assert all(death.step < num_steps for seed in range(20) for death in draw_deaths(seed, "agree", 2, num_steps))
