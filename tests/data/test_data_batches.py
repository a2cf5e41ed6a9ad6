from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_bp.data import Batches, Dataset, ShardPlan, digest_ids, evaluation_chunks
from ddp_bp.data import dataset as dataset_module
from ddp_bp.data.dataset import standardization_of, to_float32
from ddp_bp.errors import DataError


def numbered(num_samples: int) -> Dataset:
    """Sample i is [i, i] with label i."""
    ids = np.arange(num_samples)
    return Dataset(np.column_stack([ids, ids]).astype(np.float32), ids)


def test_a_batch_holds_the_samples_of_its_shard() -> None:
    plan = ShardPlan(num_samples=23, batch_size=7, num_shards=3, seed=1)
    batches = Batches(numbered(23), plan)
    for step in (0, 3, 4, 11, 1):
        for shard in range(3):
            batch = batches.load(step, shard)
            np.testing.assert_array_equal(batch.ids, plan.shard_ids(step, shard))
            np.testing.assert_array_equal(batch.targets, batch.ids)
            np.testing.assert_array_equal(batch.inputs[:, 1], batch.ids)
            assert batch.ids_digest == digest_ids(batch.ids)
            assert batch.num_samples == len(batch.ids)
            assert batch.ids.base is None, "a kept batch must not keep the order of its epoch"
            assert batch.inputs.dtype == np.float32 and batch.inputs.flags.c_contiguous
            assert batch.targets.dtype == np.int64


def test_the_epoch_is_ordered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = []
    order = ShardPlan.epoch_order

    def counted(self: ShardPlan, epoch: int) -> np.ndarray:
        epochs.append(epoch)
        return order(self, epoch)

    monkeypatch.setattr(ShardPlan, "epoch_order", counted)
    batches = Batches(numbered(10), ShardPlan(10, 5, 2, 0))
    for step in range(4):
        for shard in range(2):
            batches.load(step, shard)
    assert epochs == [0, 1]


def test_an_empty_shard_has_arrays_of_the_right_shape() -> None:
    batches = Batches(numbered(2), ShardPlan(num_samples=2, batch_size=2, num_shards=5, seed=0))
    sizes = [batches.load(0, shard).num_samples for shard in range(5)]
    empty = batches.load(0, sizes.index(0))
    assert sum(sizes) == 2
    assert empty.inputs.shape == (0, 2) and empty.inputs.dtype == np.float32
    assert empty.targets.shape == (0,) and empty.targets.dtype == np.int64


def test_what_is_done_to_a_batch_does_not_reach_the_data() -> None:
    dataset = numbered(3)
    inputs, targets = dataset.batch(np.arange(3))
    inputs[:], targets[:] = -1, -1
    assert dataset.batch(np.arange(3))[1].tolist() == [0, 1, 2]
    assert dataset.batch(np.arange(3))[0].min() == 0


def test_a_plan_for_another_data_set_is_refused() -> None:
    with pytest.raises(DataError, match="plan is for 9 samples, but the data set has 10"):
        Batches(numbered(10), ShardPlan(9, 5, 2, 0))
    with pytest.raises(DataError, match="one target for each input, got 3 and 2"):
        Dataset(np.ones((3, 1)), np.ones(2))


@given(st.integers(0, 50), st.integers(1, 60))
def test_evaluation_chunks_hold_each_sample_once(num_samples: int, chunk_size: int) -> None:
    chunks = evaluation_chunks(num_samples, chunk_size)
    assert [sample for lo, hi in chunks for sample in range(lo, hi)] == list(range(num_samples))
    assert all(hi - lo == chunk_size for lo, hi in chunks[:-1])


@pytest.mark.parametrize(("num_samples", "chunk_size"), [(-1, 1), (1, 0)])
def test_impossible_evaluation_chunks_are_refused(num_samples: int, chunk_size: int) -> None:
    with pytest.raises(DataError, match="evaluation chunks need"):
        evaluation_chunks(num_samples, chunk_size)


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i4", "<f2", ">f4", "<f8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_real_dtype_and_memory_order_gives_float32(dtype: str, order: str) -> None:
    raw = np.asarray(np.arange(24).reshape(4, 3, 2) % 5, dtype=dtype, order=order)  # type: ignore[call-overload]
    inputs, targets = Dataset(raw, np.arange(4.0)).batch(np.array([2, 0]))
    assert inputs.dtype == np.float32 and inputs.flags.c_contiguous and inputs.dtype.isnative
    np.testing.assert_array_equal(inputs, raw[[2, 0]].astype(np.float32))
    assert targets.dtype == np.float32 and targets.tolist() == [[2.0], [0.0]]


def test_standardization_matches_numpy_and_is_elementwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "CHUNK_BYTES", 100)  # 4 rows at a time
    raw = np.random.default_rng(0).normal(1000, 0.1, size=(101, 3))
    rows = np.arange(0, 101, 2)
    got = standardization_of(raw, rows)
    np.testing.assert_allclose(got.mean, raw[rows].mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(got.deviation, raw[rows].std(axis=0), rtol=1e-10)
    np.testing.assert_array_equal(to_float32(raw, got)[7:9], to_float32(raw[7:9], got))


def test_the_digest_tells_data_sets_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = np.arange(40, dtype=np.float32).reshape(20, 2)
    targets = np.arange(20)
    changed_input, changed_target = inputs.copy(), targets.copy()
    changed_input[13, 1] += 1
    changed_target[13] += 1
    sets = [
        Dataset(inputs, targets),
        Dataset(inputs[:19], targets[:19]),
        Dataset(inputs.reshape(20, 2, 1), targets),
        Dataset(inputs, targets.astype(np.float32)),
        Dataset(changed_input, targets),
        Dataset(inputs, changed_target),
        Dataset(inputs, targets, rows=np.arange(20)[::-1]),
    ]
    assert len({one.digest for one in sets}) == len(sets)
    assert Dataset(inputs.astype(np.float64), targets.astype(np.uint8)).digest == sets[0].digest

    monkeypatch.setattr(dataset_module, "_DIGEST_LIMIT_BYTES", 20 * 8 - 1)
    monkeypatch.setattr(dataset_module, "_DIGEST_NUM_SAMPLES", 5)  # 0, 4, 9, 14, 19
    sampled = Dataset(inputs, targets).digest
    inputs[10] = -1
    assert Dataset(inputs, targets).digest == sampled
    inputs[19] = -1
    assert Dataset(inputs, targets).digest != sampled
