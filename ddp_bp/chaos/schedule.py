"""Which disturbances a seed stands for: when, of which kind, to whom. Pure; knows neither processes nor clocks.

Who is left when a disturbance is due is not known before. So it draws an order among all ranks there might be, and who
of those that are left comes first in it is the victim.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

Kind = Literal["kill", "kill-two", "kill-all-but-one", "stop", "coordinator", "launcher", "fill"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
DEFAULT_KINDS: Final[tuple[Kind, ...]] = ("kill", "stop", "coordinator")

MOST_DISTURBANCES: Final = 20
"""How many, unless somebody says so: a job that is disturbed faster than it gets on would never end."""
_LONGEST_PAUSE_SECONDS: Final = 4.0
_STOPPED_FOR_GOOD: Final = 0.25


@dataclass(frozen=True)
class Disturbance:
    """One disturbance.

    wait_seconds: how long all is well before it. order: all ranks, as numbered at the start, the first victim first.
    pause_seconds: for `stop`, after how long the rank goes on; None: never.
    """

    wait_seconds: float
    kind: Kind
    order: tuple[int, ...]
    pause_seconds: float | None = None

    def victims(self, left: Collection[int]) -> list[int]:
        """Which of the ranks that are left it is for; none for the kinds that are not for ranks."""
        match self.kind:
            case "kill" | "stop":
                count = 1
            case "kill-two":
                count = 2
            case "kill-all-but-one":
                count = len(left) - 1
            case _:
                count = 0
        return [rank for rank in self.order if rank in left][:count]


def draw_schedule(
    seed: int, kinds: Sequence[Kind], mean_seconds: float, num_ranks: int, most: int = MOST_DISTURBANCES
) -> list[Disturbance]:
    """The disturbances of a job, in order; the same for the same arguments.

    The time before each is drawn from an exponential distribution of that mean, so that several may come at once. Only
    the first comes after the mean at the latest: a job in which nothing happens shows nothing.
    """
    draw = random.Random(f"disturbances {seed}")
    schedule: list[Disturbance] = []
    for _ in range(most):
        wait_seconds, kind = draw.expovariate(1.0 / mean_seconds), draw.choice(kinds)
        if not schedule:
            wait_seconds = min(wait_seconds, mean_seconds)
        order = tuple(draw.sample(range(num_ranks), num_ranks))
        ends, pause_seconds = draw.random() >= _STOPPED_FOR_GOOD, draw.uniform(0.1, _LONGEST_PAUSE_SECONDS)
        is_pause = kind == "stop" and ends
        schedule.append(Disturbance(wait_seconds, kind, order, pause_seconds if is_pause else None))
    return schedule
