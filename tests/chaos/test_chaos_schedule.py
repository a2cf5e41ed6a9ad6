"""What a seed stands for: disturbances and deaths, the same every time, and for ranks that there are."""

from __future__ import annotations

import statistics

import pytest

from ddp_bp.chaos.announced import rounds_that_were
from ddp_bp.chaos.joins import spares_for
from ddp_bp.chaos.points import Round, draw_rounds, most_rounds, steps_between_checkpoints
from ddp_bp.chaos.schedule import DEFAULT_KINDS, KINDS, MOST_DISTURBANCES, Disturbance, Kind, draw_schedule
from ddp_bp.worker.death import POINTS, Death, Point, decode_deaths, encode_deaths


def test_a_seed_stands_for_one_schedule() -> None:
    schedule = draw_schedule(3, KINDS, 2.0, 4)
    assert schedule == draw_schedule(3, KINDS, 2.0, 4)
    assert schedule != draw_schedule(4, KINDS, 2.0, 4)
    assert len(schedule) == MOST_DISTURBANCES
    assert draw_schedule(3, KINDS, 2.0, 4, 200)[:MOST_DISTURBANCES] == schedule
    assert all(sorted(one.order) == [0, 1, 2, 3] and one.wait_seconds > 0 for one in schedule)


def test_all_kinds_and_ranks_come_up_and_waits_have_the_mean_that_was_asked_for() -> None:
    schedule = [one for seed in range(100) for one in draw_schedule(seed, DEFAULT_KINDS, 2.0, 4)]
    assert {one.kind for one in schedule} == set(DEFAULT_KINDS)
    assert {one.order[0] for one in schedule} == {0, 1, 2, 3}
    assert max(draw_schedule(seed, KINDS, 2.0, 4)[0].wait_seconds for seed in range(100)) == 2.0
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


def deaths_of(rounds: list[Round]) -> list[Death]:
    return [death for one in rounds for death in one.deaths]


@pytest.mark.parametrize("point", [point for point in POINTS if point != "join"])
@pytest.mark.parametrize("num_ranks", [3, 4, 7, 8])
@pytest.mark.parametrize("is_full", [False, True])
def test_somebody_is_left_of_those_that_die_at_a_point(point: Point, num_ranks: int, is_full: bool) -> None:
    num_rounds = most_rounds(point, num_ranks, 40) if is_full else 1
    drawn = [draw_rounds(seed, point, num_rounds, num_ranks, 40) for seed in range(200)]
    assert drawn == [draw_rounds(seed, point, num_rounds, num_ranks, 40) for seed in range(200)]
    for seed, rounds in enumerate(drawn):
        ranks = [death.rank for death in deaths_of(rounds)]
        assert len(ranks) == len(set(ranks)) and set(ranks) < set(range(num_ranks))
        assert [one.seed for one in rounds] == list(range(seed, seed + num_rounds))
        assert num_rounds == 1 or len(ranks) == num_ranks - 1, "all but one have died in the end"
        for one in rounds:
            assert [death.rank for death in one.deaths] == sorted(death.rank for death in one.deaths)
            assert len({death.step for death in one.deaths}) == 1
            points = {death.point for death in one.deaths}
            assert one.point == point and point in points and len(points) == (2 if point == "recovery" else 1)
        steps = [one.deaths[0].step for one in rounds]
        assert steps == sorted(set(steps)) and steps[0] >= 1 and steps[-1] <= 37
        assert decode_deaths(encode_deaths(deaths_of(rounds))) == deaths_of(rounds)
    assert {death.rank for rounds in drawn for death in deaths_of(rounds)} == set(range(num_ranks))
    if num_rounds == 1:
        assert {len(one.deaths) for rounds in drawn for one in rounds} >= {2, num_ranks - 1}


@pytest.mark.parametrize(("num_ranks", "num_rounds"), [(4, 1), (5, 1), (7, 2), (8, 2), (9, 3)])
def test_while_spares_join_they_die_or_others_do(num_ranks: int, num_rounds: int) -> None:
    assert most_rounds("join", num_ranks, 100) == num_rounds
    size, kinds = num_ranks - spares_for(num_rounds), set()
    for seed in range(200):
        rounds = draw_rounds(seed, "join", num_rounds, num_ranks, 100)
        assert rounds == draw_rounds(seed, "join", num_rounds, num_ranks, 100)
        waiting, team = list(range(size, num_ranks)), set(range(size))
        for one in rounds:
            first, second = sorted(one.deaths, key=lambda death: death.point == "join")
            assert first.point != "join" and second.point == "join" and first.step >= 1
            assert first.rank in team
            team.remove(first.rank)
            kinds.add(second.rank in team)
            # Whoever is called dies, so that one more is; or two are called.
            called = [waiting.pop(0), waiting.pop(0)]
            team |= set(called)
            assert second.step == (first.step if second.rank not in called else 0)
            team.remove(second.rank)
            assert len(team) == size
    assert kinds == ({False} if size == 2 else {False, True})


def test_eight_ranks_die_at_a_point_five_times_in_a_job() -> None:
    assert [most_rounds("agree", num_ranks, 100) for num_ranks in (2, 4, 5, 8)] == [1, 1, 2, 5]
    assert [most_rounds("recovery", num_ranks, 100) for num_ranks in (3, 4, 6, 8)] == [1, 1, 2, 3]
    assert most_rounds("agree", 8, 9) == 2, "there are no more steps"
    for seed in range(20):
        counts = [len(one.deaths) for one in draw_rounds(seed, "agree", 5, 8, 100)]
        assert sorted(counts) == [1, 1, 1, 2, 2] and counts[-1] == 2


def test_between_two_rounds_there_is_a_checkpoint() -> None:
    every = steps_between_checkpoints(5, 100)
    for seed in range(200):
        steps = [one.deaths[0].step for one in draw_rounds(seed, "checkpoint", 5, 8, 100)]
        # A step counts as committed when its checkpoint is taken.
        due = [-(-step // every) * every for step in steps]
        assert len(set(due)) == 5 and due[-1] <= 100


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_a_short_run_has_a_step_to_die_in(num_steps: int) -> None:
    drawn = [draw_rounds(seed, "agree", 1, 2, num_steps) for seed in range(20)]
    assert all(death.step < num_steps for rounds in drawn for death in deaths_of(rounds))


def said(*deaths: Death) -> list[str]:
    return [f"ddp-bp: rank {death.rank} kills itself at step {death.step}: {death.point}" for death in deaths]


def test_a_round_has_taken_place_when_a_rank_died_at_the_point_itself() -> None:
    first = Round(7, "recovery", (Death(1, "forward", 5), Death(3, "recovery", 5), Death(4, "recovery", 5)))
    second = Round(8, "recovery", (Death(0, "agree", 9), Death(2, "recovery", 9)))
    told = [*said(Death(1, "forward", 5), Death(3, "recovery", 6)), "a line of a model", *said(Death(0, "agree", 9))]
    (done,), missing = rounds_that_were([first, second], told)
    assert (done.kind, done.what) == ("death", "rank 1 at forward, rank 3 at recovery")
    assert (done.ranks, done.step, done.doing) == ([1, 3], 5, ["forward", "recovery"])
    assert missing == [2, 4]
