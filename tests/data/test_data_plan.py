from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_bp.data.order import EPOCH, SPLIT, random_order
from ddp_bp.data.plan import ShardPlan, digest_ids
from ddp_bp.errors import DataError

plans = st.builds(
    ShardPlan,
    num_samples=st.integers(1, 60),
    batch_size=st.integers(1, 80),
    num_shards=st.integers(1, 12),
    seed=st.integers(0, 2**64 - 1),
)


@settings(max_examples=100)
@given(plans, st.integers(0, 3))
def test_each_sample_is_used_exactly_once_in_every_epoch(plan: ShardPlan, epoch: int) -> None:
    first = epoch * plan.steps_per_epoch
    used = [
        plan.shard_ids(step, shard)
        for step in range(first, first + plan.steps_per_epoch)
        for shard in range(plan.num_shards)
    ]
    assert sorted(np.concatenate(used)) == list(range(plan.num_samples))


@settings(max_examples=100)
@given(plans, st.integers(0, 200))
def test_shards_partition_their_batch_and_are_of_equal_size_but_for_one(plan: ShardPlan, step: int) -> None:
    epoch, step_in_epoch = plan.position(step)
    shards = [plan.shard_ids(step, shard) for shard in range(plan.num_shards)]
    start = step_in_epoch * plan.batch_size
    batch = plan.epoch_order(epoch)[start : start + plan.batch_size]
    sizes = [len(ids) for ids in shards]
    np.testing.assert_array_equal(np.concatenate(shards), batch)
    assert sum(sizes) == plan.batch_size_at(step_in_epoch)
    assert max(sizes) - min(sizes) <= 1
    assert all(ids.dtype == np.int64 for ids in shards)


@given(plans)
def test_batches_are_full_but_for_the_last(plan: ShardPlan) -> None:
    sizes = [plan.batch_size_at(step) for step in range(plan.steps_per_epoch)]
    assert sum(sizes) == plan.num_samples
    assert all(size == min(plan.batch_size, plan.num_samples) for size in sizes[:-1])
    assert 1 <= sizes[-1] <= plan.batch_size


@given(plans)
def test_the_number_of_shards_does_not_change_the_batches(plan: ShardPlan) -> None:
    other = ShardPlan(plan.num_samples, plan.batch_size, plan.num_shards + 1, plan.seed)
    for step in range(plan.steps_per_epoch):
        np.testing.assert_array_equal(
            np.concatenate([plan.shard_ids(step, shard) for shard in range(plan.num_shards)]),
            np.concatenate([other.shard_ids(step, shard) for shard in range(other.num_shards)]),
        )


def test_seed_epoch_and_purpose_each_change_the_order() -> None:
    orders = [
        random_order(50, seed=seed, index=index, purpose=purpose)
        for seed in (0, 1, 2**64 - 1)
        for index in (0, 1)
        for purpose in (SPLIT, EPOCH)
    ]
    assert len({order.tobytes() for order in orders}) == len(orders)


def test_the_order_is_pinned_so_that_a_new_numpy_cannot_change_a_run() -> None:
    expected = [4, 2, 1, 6, 0, 10, 7, 8, 5, 3, 9, 11]
    assert ShardPlan(num_samples=12, batch_size=5, num_shards=2, seed=7).epoch_order(3).tolist() == expected


def test_the_order_is_uniform() -> None:
    # Each of 4 samples comes first about 1 time in 4: 4 standard deviations of a binomial of 2000 are 78.
    first = [int(random_order(4, seed=11, index=epoch, purpose=EPOCH)[0]) for epoch in range(2000)]
    assert np.all(np.abs(np.bincount(first, minlength=4) - 500) < 78)


def test_digest_is_the_documented_one_and_depends_on_the_order() -> None:
    ids = np.array([5, 3, 2**40], dtype=np.int64)
    expected = struct.unpack("<Q", hashlib.sha256(struct.pack("<3q", 5, 3, 2**40)).digest()[:8])[0]
    assert digest_ids(ids) == expected
    assert digest_ids(ids[::-1]) != expected
    assert digest_ids(np.zeros(6, dtype=np.int64)[::2]) == digest_ids(np.zeros(3, dtype=np.int64))
    assert digest_ids(np.empty(0, dtype=np.int64)) == int.from_bytes(hashlib.sha256(b"").digest()[:8], "little")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, 1, 1, 0), "number of samples must be at least 1, got 0"),
        ((1, 0, 1, 0), "batch size must be at least 1, got 0"),
        ((1, 1, -2, 0), "number of shards must be at least 1, got -2"),
        ((1, 1, 1, -1), "seed must be in [0, 2**64), got -1"),
        ((1, 1, 1, 2**64), "seed must be in"),
    ],
)
def test_an_impossible_plan_is_refused(arguments: tuple[int, int, int, int], named: str) -> None:
    with pytest.raises(DataError) as raised:
        ShardPlan(*arguments)
    assert named in str(raised.value)


def test_out_of_range_steps_and_shards_are_refused() -> None:
    plan = ShardPlan(num_samples=10, batch_size=4, num_shards=3, seed=0)
    with pytest.raises(DataError, match="step 3 is not in an epoch of 3 steps"):
        plan.batch_size_at(3)
    with pytest.raises(DataError, match="counted from 0, got -1"):
        plan.shard_ids(-1, 0)
    for shard in (-1, 3):
        with pytest.raises(DataError, match=f"shard {shard} is not one of 3"):
            plan.shard_ids(0, shard)
    with pytest.raises(DataError, match="the index of random words"):
        plan.epoch_order(-1)
