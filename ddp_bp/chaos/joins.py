"""Which ranks die while spares take the place of others, and in which steps, as a seed says. Pure.

In each round a rank of the team dies at some point of a step, and while a spare joins the others, that spare dies, or
another one of the team does. Then two more spares are in the team than before, so that it is as large as it was.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from ddp_bp.worker.death import Death, Point

_SPARES_PER_ROUND: Final = 2
_SMALLEST_TEAM: Final = 2
_MOST_PASSES: Final = 60
FEWEST_RANKS: Final = _SMALLEST_TEAM + _SPARES_PER_ROUND
"""Of a job with one round, spares included."""


def most_joins(num_ranks: int) -> int:
    """How many rounds a job of so many ranks can have, spares included."""
    return max(1, (num_ranks - _SMALLEST_TEAM - 1) // _SPARES_PER_ROUND)


def spares_for(num_rounds: int) -> int:
    """How many ranks wait at the start."""
    return _SPARES_PER_ROUND * num_rounds


def draw_joins(
    draw: random.Random, steps: Sequence[int], num_ranks: int, first_points: Sequence[Point]
) -> list[tuple[Death, ...]]:
    """The deaths of each round; `steps`: in which step each begins. `first_points`: where the first rank may die.

    A spare that is to die does so when it is called, whatever the step is.
    """
    spares = list(range(num_ranks - spares_for(len(steps)), num_ranks))
    team = list(range(spares[0]))
    rounds = []
    for step in steps:
        first = team.pop(draw.randrange(len(team)))
        called, passes = [spares.pop(0), spares.pop(0)], draw.randint(0, _MOST_PASSES)
        deaths = [Death(first, draw.choice(first_points), step)]
        if len(team) >= _SMALLEST_TEAM and draw.random() < 0.5:
            deaths.append(Death(team.pop(draw.randrange(len(team))), "join", step, passes))
            team += called
        else:
            deaths.append(Death(called[0], "join", 0, passes))
            team.append(called[1])
        rounds.append(tuple(deaths))
    return rounds
