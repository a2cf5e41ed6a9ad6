"""Steps that are not finite: how many in a row may be skipped, and what is said of the first."""

from __future__ import annotations

import pytest
from worker_cases import PLAN

from ddp_bp.worker.nonfinite import NonFiniteError, SkipLimit
from ddp_bp.worker.progress import Progress


def skip(limit: SkipLimit, progress: Progress, shard: int) -> str | None:
    warning = limit.check((shard, 3))
    progress.skip(10, shard, first_in_epoch=False)
    return warning


def test_the_first_of_several_is_warned_of_and_named_at_the_limit() -> None:
    progress = Progress(step=5)
    limit = SkipLimit(3, PLAN, progress)
    assert limit.check(()) is None
    ids = PLAN.shard_ids(5, 2)[:8].tolist()
    assert skip(limit, progress, 2) == (
        f"step 5, shard 2 (sample ids {ids}): skipped, because the loss or its gradient is not finite"
    )
    assert skip(limit, progress, 0) is None
    assert skip(limit, progress, 1) is None
    with pytest.raises(NonFiniteError, match="step 5, shard 2") as raised:
        limit.check((0,))
    for part in (str(ids), "in all 3 steps since then", "fault.nonfinite_limit = 3", "The state of before step 5"):
        assert part in str(raised.value)
    assert progress.step == 8, "the step that was one too many does not count"


def test_a_good_step_begins_anew() -> None:
    progress = Progress()
    limit = SkipLimit(1, PLAN, progress)
    for step in range(0, 8, 2):
        assert f"step {step}, shard 1" in (skip(limit, progress, 1) or "")
        progress.commit(1.0, 10.0, 0.0, 10, 10.0, first_in_epoch=False)
    assert (progress.skipped_steps, progress.updates) == (4, 4)


def test_a_limit_of_0_ends_at_once() -> None:
    with pytest.raises(NonFiniteError, match=r"step 0, shard 3 .* not finite; fault.nonfinite_limit = 0"):
        SkipLimit(0, PLAN, Progress()).check((3,))
