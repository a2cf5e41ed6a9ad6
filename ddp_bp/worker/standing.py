"""What ranks tell each other when some have died, so that all of them go on from the same place in the loop.

Plain data. Knows not how it is sent, nor what becomes of it.
"""

from __future__ import annotations

import msgspec

from ddp_bp.wire.messages import Evaluation, LedgerRecords
from ddp_bp.worker.progress import Progress


class Standing(msgspec.Struct, array_like=True):
    """Where a rank was when another died: what of a step's follow-up it may have done that others have not.

    `is_new`: it has just joined, and knows nothing of this yet.
    """

    step: int
    requests: int | None
    has_evaluated: bool
    owes_checkpoint: bool
    is_new: bool


class Briefing(msgspec.Struct, array_like=True):
    """What one that has just joined must know to go on as any other rank, and to be rank 0 one day.

    `counts`: the steps, samples and skipped steps of this start, which all ranks report alike.
    """

    progress: Progress
    chain_sha256: str
    records: list[LedgerRecords]
    evaluations: list[Evaluation]
    counts: tuple[int, int, int]
    requests: int
    has_followed_up: bool
    schedule_told_at: int | None
    fatal: str | None
    seconds: float
    samples_before: int
