"""The `[fault]` section of a recipe: what is done when a process dies, is told to leave, or computes wrongly.

Must not know how.
"""

from __future__ import annotations

from typing import Literal

from ddp_bp.recipes.section import Count, PositiveFloat, Section, Share


class FaultSection(Section, frozen=True, kw_only=True):
    """`[fault]`: what is done when a process dies, is told to leave, or computes wrongly. None of it changes a bit of
    the result.

    recovery: when a rank has died, "auto" goes on with those that are left, where MPI offers that, and else does as
        "restart", which starts all ranks again from the newest checkpoint; "none" ends the job.
    max_restarts: how often in a row all ranks are started again without a newer checkpoint than at the time before.
    grace_seconds: how long a checkpoint may take after SIGUSR1 or SIGTERM, before the job leaves without it.
    nonfinite_limit: how many steps in a row are skipped because a loss or gradient is not finite; one more ends the
        job, with a checkpoint.
    compare_every_steps: after how many steps the ranks compare what all of them hold; 0: never.
    audit: the fraction of shards that another rank computes once more, to compare.
    """

    recovery: Literal["auto", "restart", "none"] = "auto"
    max_restarts: Count = 3
    grace_seconds: PositiveFloat = 60.0
    nonfinite_limit: Count = 10
    compare_every_steps: Count = 100
    audit: Share = 0.0
