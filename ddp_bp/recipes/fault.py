"""The `[fault]` section of a recipe: what is done when a process dies, or is told to leave. Must not know how."""

from __future__ import annotations

from typing import Literal

from ddp_bp.recipes.section import Count, PositiveFloat, Section


class FaultSection(Section, frozen=True, kw_only=True):
    """`[fault]`: what is done when a process dies, or is told to leave. None of it changes a bit of the result.

    recovery: "auto" takes the best that this installation offers, "restart" starts all ranks again from the newest
        checkpoint, "none" ends the job.
    max_restarts: how often in a row all ranks are started again without a newer checkpoint than at the time before.
    grace_seconds: how long a checkpoint may take after SIGUSR1 or SIGTERM, before the job leaves without it.
    """

    recovery: Literal["auto", "restart", "none"] = "auto"
    max_restarts: Count = 3
    grace_seconds: PositiveFloat = 60.0
