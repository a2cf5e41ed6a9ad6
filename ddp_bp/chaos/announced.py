"""Which of the rounds that a job was given have taken place, as its ranks said before they killed themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ddp_bp.chaos.points import Round
from ddp_bp.chaos.record import Done
from ddp_bp.worker.death import read_death


def rounds_that_were(rounds: Sequence[Round], lines: Iterable[str]) -> tuple[list[Done], list[int]]:
    """The rounds in which a rank has died at the point itself, and the ranks that were to die and have not.

    `lines`: what the ranks wrote.
    """
    said = {death.rank: death for line in lines if (death := read_death(line)) is not None}
    done, missing = [], []
    for one in rounds:
        there = [said[death.rank] for death in one.deaths if death.rank in said]
        missing += [death.rank for death in one.deaths if death.rank not in said]
        if any(death.point == one.point for death in there):
            what = ", ".join(f"rank {death.rank} at {death.point}" for death in there)
            ranks, points = [death.rank for death in there], [str(death.point) for death in there]
            done.append(Done(None, "death", what, ranks, min(death.step for death in there), points))
    return done, sorted(missing)
