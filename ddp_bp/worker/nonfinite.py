"""What becomes of steps whose loss or gradient is not finite: all ranks skip them alike, up to a limit.

A skipped step counts: its number is used up, and so are its samples; the learning rate goes on with the number of the
step. Parameters, the optimizer's state and count, averages and buffers stay as they were. Knows no ranks: what it
decides on is the same on all of them.
"""

from __future__ import annotations

from ddp_bp.data import ShardPlan
from ddp_bp.errors import DdpError
from ddp_bp.worker.progress import Progress


class NonFiniteError(DdpError):
    """Losses or gradients that are not numbers, in more steps in a row than may be skipped."""

    on_every_rank = True


class SkipLimit:
    """How many steps in a row may be skipped."""

    def __init__(self, limit: int, plan: ShardPlan, progress: Progress) -> None:
        self._limit, self._plan, self._progress = limit, plan, progress

    def check(self, nonfinite_shards: tuple[int, ...]) -> str | None:
        """To be called before a step is committed.

        Returns what to warn of: the first step of several in a row that are skipped.

        Raises NonFiniteError if this step would be one too many.
        """
        if not nonfinite_shards:
            return None
        progress = self._progress
        step, shard, is_first = progress.step - progress.skips_in_a_row, progress.first_skip_shard, False
        if shard is None:
            shard, is_first = nonfinite_shards[0], True
        ids = self._plan.shard_ids(step, shard)
        where = f"step {step}, shard {shard} (sample ids {ids[:8].tolist()}{'...' if len(ids) > 8 else ''})"
        if progress.skips_in_a_row >= self._limit:
            since = "" if is_first else f", and so it was in all {progress.skips_in_a_row} steps since then"
            raise NonFiniteError(
                f"{where}: the loss or its gradient is not finite{since}; fault.nonfinite_limit = {self._limit}. "
                f"The state of before step {step} is kept; lower optimizer.lr, or look at these samples"
            )
        return f"{where}: skipped, because the loss or its gradient is not finite" if is_first else None
