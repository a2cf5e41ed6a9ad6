from __future__ import annotations

from itertools import pairwise

from ddp_bp.wire.phases import NUM_PHASE_BUCKETS, PHASE_BUCKETS_SECONDS


def test_buckets_rise_from_50_microseconds() -> None:
    assert PHASE_BUCKETS_SECONDS[0] == 50e-6
    assert all(a < b for a, b in pairwise(PHASE_BUCKETS_SECONDS))
    assert len(PHASE_BUCKETS_SECONDS) + 1 == NUM_PHASE_BUCKETS
