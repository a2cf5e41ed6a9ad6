from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_bp.data import Augment, Batches, Dataset, DataSpec, Normalize, ShardPlan, load
from ddp_bp.data.augment import WORDS_PER_IMAGE, vary
from ddp_bp.data.dataset import Standardization
from ddp_bp.errors import DataError


def words_of(seed: int, num_images: int) -> np.ndarray:
    return np.random.Philox(seed).random_raw(num_images * WORDS_PER_IMAGE).reshape(num_images, WORDS_PER_IMAGE)


def numbered_images(*shape: int) -> np.ndarray:
    """Images none of whose pixels are 0 or equal, so that a result tells where each one came from."""
    return np.arange(1, np.prod(shape) + 1, dtype=np.int32).reshape(shape)


def moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """The definition, pixel by pixel."""
    result = np.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                result[:, row, column] = image[:, row - down, column - right]
    return result


def moves_to(image: np.ndarray, limit: int, flips: bool) -> dict[bytes, tuple[int, int, bool]]:
    every = range(-limit, limit + 1)
    return {
        (moved(image, down, right)[:, :, ::-1] if flip else moved(image, down, right)).tobytes(): (down, right, flip)
        for down in every
        for right in every
        for flip in ((False, True) if flips else (False,))
    }


@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(4, 6), st.integers(4, 6)),
    shift=st.integers(0, 2),
    crop=st.integers(0, 1),
    flip=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_an_image_is_moved_and_mirrored_within_the_limits(
    shape: tuple[int, ...], shift: int, crop: int, flip: bool, seed: int
) -> None:
    images = numbered_images(*shape)
    before = images.copy()
    settings = Augment(shift=shift, crop=crop, flip=flip)
    varied = vary(images, settings, words_of(seed, shape[0]))
    np.testing.assert_array_equal(images, before)
    assert varied.shape == shape and varied.dtype == images.dtype and not np.shares_memory(varied, images)
    for image, got in zip(images, varied, strict=True):
        assert got.tobytes() in moves_to(image, shift + crop, flip)


def test_every_move_is_as_likely_as_any_other() -> None:
    num_images = 20_000
    image = numbered_images(1, 1, 3, 3)
    varied = vary(np.repeat(image, num_images, axis=0), Augment(shift=1, flip=True), words_of(1, num_images))
    known = moves_to(image[0], 1, True)
    counts = dict.fromkeys(known.values(), 0)
    for got in varied:
        counts[known[got.tobytes()]] += 1
    expected = num_images / 18
    # Chi-squared with 17 degrees of freedom is above 40.8 once in a thousand times; the words are fixed.
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 40.8


def test_a_row_of_words_alone_decides_about_its_image() -> None:
    images, words = numbered_images(6, 2, 5, 5), words_of(2, 6)
    settings = Augment(shift=2, flip=True)
    whole = vary(images, settings, words)
    np.testing.assert_array_equal(whole[2:4], vary(images[2:4], settings, words[2:4]))
    # What else is switched on does not change the shift.
    np.testing.assert_array_equal(
        vary(images, Augment(shift=2), words),
        np.where((words[:, 2] >> np.uint64(63) == 1)[:, None, None, None], whole[..., ::-1], whole),
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float64])
def test_any_dtype_is_moved_alike(dtype: Any) -> None:
    images = numbered_images(3, 1, 6, 6)
    settings, words = Augment(crop=2, flip=True), words_of(3, 3)
    np.testing.assert_array_equal(
        vary(images.astype(dtype), settings, words), vary(images, settings, words).astype(dtype)
    )


def image_set(num_samples: int) -> Dataset:
    images = numbered_images(num_samples, 1, 4, 4).astype(np.float32)
    return Dataset(images, np.arange(num_samples))


def test_batches_are_varied_by_seed_step_and_shard_alone() -> None:
    settings = Augment(shift=1, flip=True)
    plan = ShardPlan(40, 10, 2, seed=7)
    batches = Batches(image_set(40), plan, settings)
    loaded = {(step, shard): batches.load(step, shard) for step in range(8) for shard in range(2)}
    # Another process that computes the second shard only, from the middle, as after a resume.
    other = Batches(image_set(40), plan, settings)
    for step in (5, 6, 2):
        np.testing.assert_array_equal(other.load(step, 1).inputs, loaded[step, 1].inputs)
    plain = Batches(image_set(40), plan)
    differ = [not np.array_equal(batch.inputs, plain.load(*key).inputs) for key, batch in loaded.items()]
    assert all(differ)
    for key, batch in loaded.items():
        assert batch.ids_digest == plain.load(*key).ids_digest
        np.testing.assert_array_equal(batch.targets, plain.load(*key).targets)


def test_the_words_differ_between_steps_shards_and_seeds() -> None:
    """All samples are the same image, so that batches differ by what is done to them alone."""
    images = np.repeat(numbered_images(1, 1, 6, 6), 64, axis=0).astype(np.float32)
    dataset, settings = Dataset(images, np.zeros(64, np.int64)), Augment(shift=2, flip=True)
    seen = {
        Batches(dataset, ShardPlan(64, 32, 2, seed), settings).load(step, shard).inputs.tobytes()
        for seed in (0, 1)
        for step in range(4)
        for shard in range(2)
    }
    assert len(seen) == 16


def test_bits_of_a_varied_batch_do_not_change() -> None:
    """Words of Philox-4x64-10 with key (7, 3) and counter (0, 0, 1, 3), by an implementation of its own."""
    words = philox_4x64(counter=[1, 0, 1, 3], key=[7, 3])
    images = numbered_images(2, 1, 5, 5).astype(np.float32)
    # 4 samples, batches of 2 in one shard each: shard 1 of step 3.
    dataset, plan = Dataset(np.repeat(images[:1], 4, axis=0), np.zeros(4, np.int64)), ShardPlan(4, 2, 2, seed=7)
    got = Batches(dataset, plan, Augment(shift=2, flip=True)).load(3, 1).inputs[0]
    down, right = (2 - ((half * 5) >> 32) for half in (words[0] >> 32, words[0] & (2**32 - 1)))
    expected = moved(images[0], down, right)
    np.testing.assert_array_equal(got, expected[:, :, ::-1] if words[2] >> 63 else expected)


def philox_4x64(counter: list[int], key: list[int]) -> list[int]:
    """Ten rounds as in figure 2 of Salmon et al., SC'11, with the constants of table 2."""
    limit = 2**64
    for _ in range(10):
        products = (0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2])
        (high0, low0), (high1, low1) = (divmod(product, limit) for product in products)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B97F4A7C15) % limit, (key[1] + 0xBB67AE8584CAA73B) % limit]
    return counter


def test_moves_come_before_scaling_so_that_what_comes_in_is_black() -> None:
    black = np.zeros((8, 1, 4, 4), np.uint8)
    scaling = Standardization(np.full((), 100.0), np.full((), 50.0))
    dataset = Dataset(black, np.zeros(8, np.int64), standardization=scaling)
    batch = Batches(dataset, ShardPlan(8, 8, 1, 0), Augment(shift=3)).load(0, 0)
    np.testing.assert_array_equal(batch.inputs, np.full((8, 1, 4, 4), -2, np.float32))


def test_evaluation_samples_are_normalized_but_not_varied() -> None:
    settings = Augment(shift=2, flip=True, crop=1, normalize=Normalize(mean=(0.5,), std=(0.25,)))
    loaded = load(DataSpec(name="digits", input_shape=(1, 8, 8), augment=settings))
    plain = load(DataSpec(name="digits", input_shape=(1, 8, 8)))
    assert loaded.augment == settings and loaded.evaluation is not None and plain.evaluation is not None
    for one, other in ((loaded.train, plain.train), (loaded.evaluation, plain.evaluation)):
        ids = np.arange(one.num_samples)
        np.testing.assert_allclose(one.batch(ids)[0], (other.batch(ids)[0] - 0.5) / 0.25, atol=1e-6)
    batch = Batches(loaded.train, ShardPlan(loaded.train.num_samples, 64, 1, 0), loaded.augment).load(0, 0)
    assert not np.array_equal(batch.inputs, loaded.train.batch(batch.ids)[0])
    assert batch.inputs.dtype == np.float32 and batch.inputs.flags.c_contiguous


def test_channels_are_normalized_one_by_one() -> None:
    settings = Augment(normalize=Normalize(mean=(0.0, 0.5), std=(1.0, 0.25)))
    inputs, _ = load(DataSpec(name="digits", input_shape=(2, 4, 8), augment=settings)).train.batch(np.arange(9))
    plain, _ = load(DataSpec(name="digits", input_shape=(2, 4, 8))).train.batch(np.arange(9))
    np.testing.assert_array_equal(inputs[:, 0], plain[:, 0])
    np.testing.assert_allclose(inputs[:, 1], (plain[:, 1] - 0.5) / 0.25, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "changes", "expected"),
    [
        (
            Augment(shift=1),
            {},
            "`augment` needs images of shape [channels, height, width], but the inputs have shape [64]",
        ),
        (Augment(shift=-1), {}, "`augment.shift` must be a number of pixels of at least 0, got -1"),
        (Augment(crop=-2), {}, "`augment.crop` must be a number of pixels of at least 0, got -2"),
        (Augment(shift=4, crop=4), {"input_shape": (1, 8, 8)}, "may move an image by 8 pixels, which leaves nothing"),
        (Augment(normalize=Normalize((0.5,), (0.1, 0.1))), {}, "one mean and one std for each channel, got 1 and 2"),
        (Augment(normalize=Normalize()), {}, "one mean and one std for each channel, got 0 and 0"),
        (Augment(normalize=Normalize((0.5,), (0.0,))), {}, "std` must be finite and above 0, got [0.0]"),
        (Augment(normalize=Normalize((float("nan"),), (1.0,))), {}, "mean` must be finite, got [nan]"),
        (
            Augment(normalize=Normalize((0.5, 0.5), (0.1, 0.1))),
            {"input_shape": (1, 8, 8)},
            "has 2 means, but the images have 1 channels",
        ),
        (
            Augment(normalize=Normalize((0.5,), (0.1,))),
            {"standardize": True},
            "`standardize` and `augment.normalize` both scale the inputs",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: Augment, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError) as raised:
        load(DataSpec(name="digits", augment=settings, **changes))
    assert expected in str(raised.value)


def test_batches_refuse_inputs_that_are_no_images() -> None:
    with pytest.raises(DataError, match="needs images of shape"):
        Batches(Dataset(np.ones((4, 16)), np.arange(4)), ShardPlan(4, 2, 1, 0), Augment(flip=True))
