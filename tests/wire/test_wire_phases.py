from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_bp.wire.phases import NUM_PHASE_BUCKETS, PHASE_BUCKETS_SECONDS, phase_bucket


def test_buckets_rise_from_50_microseconds() -> None:
    assert PHASE_BUCKETS_SECONDS[0] == 50e-6
    assert all(a < b for a, b in pairwise(PHASE_BUCKETS_SECONDS))


@pytest.mark.parametrize(("seconds", "bucket"), [(0.0, 0), (50e-6, 0), (51e-6, 1), (30.0, 17), (31.0, 18)])
def test_upper_bounds_are_included(seconds: float, bucket: int) -> None:
    assert phase_bucket(seconds) == bucket


@given(st.floats(min_value=0, allow_nan=False))
def test_a_duration_lies_between_the_bounds_of_its_bucket(seconds: float) -> None:
    bounds = (-1.0, *PHASE_BUCKETS_SECONDS, float("inf"))
    bucket = phase_bucket(seconds)
    assert 0 <= bucket < NUM_PHASE_BUCKETS
    assert bounds[bucket] < seconds <= bounds[bucket + 1]
