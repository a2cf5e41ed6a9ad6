"""The timed parts of a training step, the histogram buckets that ranks count them into, and what a rank may be doing.

Ranks count locally and send only the increments, so that timing every step costs no message. This module
knows neither who measures a duration nor who shows it.
"""

from __future__ import annotations

from typing import Final

PHASES: Final = ("data_wait", "forward", "backward", "rank_wait", "exchange", "optimizer", "step")
"""In the order in which they happen; `step` is the whole of them. `backward` is compute only: waiting for other ranks
is `rank_wait`, for otherwise the slow rank would be the one that looks fast."""

PHASE_BUCKETS_SECONDS: Final = (
    50e-6, 100e-6, 200e-6, 500e-6,
    1e-3, 2e-3, 5e-3,
    10e-3, 20e-3, 50e-3,
    100e-3, 200e-3, 500e-3,
    1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip
"""Inclusive upper bounds, rising. One more bucket, for anything longer, follows the last."""

NUM_PHASE_BUCKETS: Final = len(PHASE_BUCKETS_SECONDS) + 1

WAITING: Final = "waiting"
"""What a rank is doing that is inside a call of MPI: it needs others to go on."""

SPARE: Final = "spare"
"""What a rank is said to be doing that waits to take the place of one that dies. Nobody waits for it."""

WORKING: Final = ("data", "forward", "backward", "compute", "exchange", "optimizer", "evaluation", "between steps")
"""What a rank may be doing while others wait for it. `compute`: of a shard, where it is not known more exactly. Besides
these there are "checkpoint", "sampling" and "other", which may take as long as they like."""
