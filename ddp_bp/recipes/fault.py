"""The `[fault]` section of a recipe: what is done when a process dies, is told to leave, or computes wrongly.

Must not know how.
"""

from __future__ import annotations

from typing import Literal

from ddp_bp.recipes.section import Count, NonNegativeFloat, PositiveFloat, PositiveInt, Section, Share


class FaultSection(Section, frozen=True, kw_only=True):
    """`[fault]`: what is done when a process dies, is told to leave, or computes wrongly. None of it changes a bit of
    the result.

    recovery: when a rank has died, "auto" goes on with those that are left, where MPI offers that, and else does as
        "restart", which starts all ranks again from the newest checkpoint; "none" ends the job.
    spares: how many ranks are started besides, which wait, and each take the place of one that dies in the very step,
        where recovery is in place.
    respawn: once the ranks that are left go on and no spare is left, stop with a checkpoint and start as many as there
        were, where `ddp-bp train` started them. respawn_limit: at most so often in respawn_seconds; then the job goes
        on smaller.
    min_workers: with fewer ranks than this the job stops, with a checkpoint.
    max_restarts: how often in a row all ranks are started again without a newer checkpoint than at the time before.
    grace_seconds: how long a checkpoint may take after SIGUSR1 or SIGTERM, before the job leaves without it.
    nonfinite_limit: how many steps in a row are skipped because a loss or gradient is not finite; one more ends the
        job, with a checkpoint.
    compare_every_steps: after how many steps the ranks compare what all of them hold; 0: never.
    audit: the fraction of shards that another rank computes once more, to compare.
    heartbeat_seconds: how often a rank says that it is there, and what it is doing.
    suspect_seconds: after how long without a sign of a rank, or of progress while others wait for it, it is named.
    silence_seconds: a rank of which there is no sign for so long is evicted; 0: never.
    hang_seconds: a rank that others wait for, and that makes no progress for so long, is evicted; 0: never.
    start_seconds: how long ranks may take to load the data, to find each other and to begin to train; 0: as long as
        they like.
    orphan_seconds: a rank that waits for others, and hears nothing of the coordinator for so long, ends; 0: never.
    """

    recovery: Literal["auto", "restart", "none"] = "auto"
    spares: Count = 0
    respawn: bool = True
    respawn_limit: Count = 3
    respawn_seconds: PositiveFloat = 600.0
    min_workers: PositiveInt = 1
    max_restarts: Count = 3
    grace_seconds: PositiveFloat = 60.0
    nonfinite_limit: Count = 10
    compare_every_steps: Count = 100
    audit: Share = 0.0
    heartbeat_seconds: PositiveFloat = 0.5
    suspect_seconds: PositiveFloat = 1.5
    silence_seconds: NonNegativeFloat = 30.0
    hang_seconds: NonNegativeFloat = 60.0
    start_seconds: NonNegativeFloat = 600.0
    orphan_seconds: NonNegativeFloat = 60.0

    def conflicts(self) -> list[str]:
        problems = []
        if self.spares and self.recovery != "auto":
            problems.append(
                f"fault.spares: spares step in where recovery is in place; expected 0 with fault.recovery = "
                f"{self.recovery!r}, got {self.spares}"
            )
        if self.suspect_seconds < 2 * self.heartbeat_seconds:
            problems.append(
                f"fault.suspect_seconds: expected at least twice fault.heartbeat_seconds = {self.heartbeat_seconds:g}, "
                f"got {self.suspect_seconds:g}; ranks that are well would be suspected"
            )
        for key, seconds in (("silence_seconds", self.silence_seconds), ("hang_seconds", self.hang_seconds)):
            if 0 < seconds < self.suspect_seconds:
                problems.append(
                    f"fault.{key}: expected 0 (never) or at least fault.suspect_seconds = {self.suspect_seconds:g}, "
                    f"got {seconds:g}"
                )
        return problems
