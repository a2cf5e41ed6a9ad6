"""Which ranks die at a named point of their work, and in which steps, as a seed says. Pure.

What one seed stands for is a round: one rank, two, or all but one of those that are left die in one step. Where there
are ranks enough, a job has several rounds, one after another, so that not each of them costs the start of a job.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ddp_bp.chaos.joins import draw_joins, most_joins
from ddp_bp.worker.death import POINTS, Death, Point

AFTER_A_DEATH: Final[tuple[Point, ...]] = ("recovery",)
"""Points that nobody comes to before another rank has died, which each round of theirs needs as well."""
_FIRST_DEATHS: Final[tuple[Point, ...]] = tuple(
    point for point in POINTS if point not in ("checkpoint", "join", *AFTER_A_DEATH)
)
# How often a point may be passed before: calls of a shard, lines of an optimizer, calls in a recovery.
_MOST_PASSES: Final = {"forward": 20, "backward": 20, "optimizer": 100, "recovery": 400}


@dataclass(frozen=True)
class Round:
    """The deaths of one step, in order of rank; those that are not at `point` itself are there to make it come."""

    seed: int
    point: Point
    deaths: tuple[Death, ...]


def most_rounds(point: Point, num_ranks: int, num_steps: int) -> int:
    """How many rounds a job can have, if two ranks are to die at once in one, and all but one of three in the last."""
    if point == "join":
        return max(1, min(most_joins(num_ranks), num_steps // 4))
    ranks = (num_ranks - 2) // 2 if point in AFTER_A_DEATH else num_ranks - 3
    return max(1, min(ranks, num_steps // 4))


def draw_rounds(seed: int, point: Point, num_rounds: int, num_ranks: int, num_steps: int) -> list[Round]:
    """The rounds of a job, for consecutive seeds from `seed` on; at most `most_rounds`. One rank is left after them,
    but for "join", where `joins` says what there is.

    A job of one round leaves as many as its seed says. A death at a point that comes after one needs one before, at any
    other point: of another rank, in the same step.
    """
    draw = random.Random(f"deaths {seed} {point}")
    if point == "join":
        joins = draw_joins(draw, _draw_steps(draw, num_rounds, num_steps), num_ranks, _FIRST_DEATHS)
        return [
            Round(number, point, tuple(sorted(deaths, key=lambda death: death.rank)))
            for number, deaths in enumerate(joins, start=seed)
        ]
    victims = draw.sample(range(num_ranks), num_ranks)
    rounds = []
    counts = _draw_counts(draw, point, num_rounds, num_ranks)
    for number, (count, step) in enumerate(zip(counts, _draw_steps(draw, num_rounds, num_steps), strict=True)):
        points: list[Point] = [point] * count
        if point in AFTER_A_DEATH and count < len(victims) - 1:
            points.append(draw.choice(_FIRST_DEATHS))
        deaths = [Death(victims.pop(), where, step, _draw_passes(draw, where)) for where in points]
        rounds.append(Round(seed + number, point, tuple(sorted(deaths, key=lambda death: death.rank))))
    return rounds


def steps_between_checkpoints(num_rounds: int, num_steps: int) -> int:
    """How often a checkpoint must be taken so that each round meets one of its own."""
    return max(1, num_steps // (4 * num_rounds))


def _draw_counts(draw: random.Random, point: Point, num_rounds: int, num_ranks: int) -> Sequence[int]:
    """How many ranks die at `point` itself in each round."""
    num_first = 1 if point in AFTER_A_DEATH else 0
    if num_rounds == 1:
        most = max(1, num_ranks - 1 - num_first)
        return [min(most, draw.choice((1, 2, num_ranks - 1)) or 1)]
    counts = [1] * (num_rounds - 1)
    rest = num_ranks - 1 - num_first - len(counts) * (1 + num_first)
    if rest > 2:
        counts[0], rest = 2, rest - 1
    draw.shuffle(counts)
    return [*counts, rest]


def _draw_steps(draw: random.Random, num_rounds: int, num_steps: int) -> list[int]:
    """The step of each round, with some in between.

    Neither the first step nor, if there are more, the last ones, of which not all ranks might hear any more.
    """
    first, last = min(1, num_steps - 1), max(2, num_steps - 2)
    width = (last - first) / num_rounds
    share = 1.0 if num_rounds == 1 else 0.7
    return [min(num_steps - 1, int(first + width * (number + share * draw.random()))) for number in range(num_rounds)]


def _draw_passes(draw: random.Random, point: Point) -> int:
    """Small numbers as often as large ones: what happens early is short."""
    return int(math.exp(draw.uniform(0.0, math.log(_MOST_PASSES.get(point, 1) + 1.0)))) - 1
