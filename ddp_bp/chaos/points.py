"""Which ranks a seed lets die at a named point of their work, and in which step. Pure."""

from __future__ import annotations

import math
import random
from typing import Final

from ddp_bp.worker.death import POINTS, Death, Point

# How often a point may be passed before: blocks of a slice, lines of an optimizer, calls in a recovery.
_MOST_PASSES: Final = {"optimizer": 40, "recovery": 400}
_FIRST_DEATHS: Final[tuple[Point, ...]] = tuple(point for point in POINTS if point not in ("checkpoint", "recovery"))


def draw_deaths(seed: int, point: Point, num_ranks: int, num_steps: int) -> list[Death]:
    """One, two or all but one of the ranks die at that point, in one step of `num_steps`; in order of rank.

    A death in a recovery needs one before, at any other point: of another rank, in the same step.
    """
    draw = random.Random(f"deaths {seed} {point}")
    most = max(1, num_ranks - (2 if point == "recovery" else 1))
    count = min(most, draw.choice((1, 2, num_ranks - 1)) or 1)
    victims = draw.sample(range(num_ranks), num_ranks)
    # Neither the first step nor the last one, of which not all ranks might hear any more.
    step = draw.randint(min(1, num_steps - 1), max(1, num_steps - 3)) if num_steps > 1 else 0
    deaths = [Death(rank, point, step, _draw_passes(draw, point)) for rank in victims[:count]]
    if point == "recovery" and count < num_ranks:
        first = draw.choice(_FIRST_DEATHS)
        deaths.append(Death(victims[count], first, step, _draw_passes(draw, first)))
    return sorted(deaths, key=lambda death: death.rank)


def _draw_passes(draw: random.Random, point: Point) -> int:
    """Small numbers as often as large ones: what happens early is short."""
    return int(math.exp(draw.uniform(0.0, math.log(_MOST_PASSES.get(point, 1) + 1.0)))) - 1
