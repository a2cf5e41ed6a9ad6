from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ddp_bp.data import Augment, Batches, Dataset, DataSpec, Normalize, ShardPlan, load, public_sets
from ddp_bp.errors import DataError

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SPEC = DataSpec(name="fashion-mnist", folder="images")


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def arrays() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [
        generator.integers(0, 256, (30, 28, 28)),
        np.arange(30) % 10,
        generator.integers(0, 256, (7, 28, 28)),
        np.arange(7),
    ]


def save(folder: Path, arrays: list[np.ndarray], suffix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(NAMES, arrays, strict=True):
        content = idx(array)
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix == ".gz" else content)
    return folder


@pytest.fixture(autouse=True)
def system_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the system's folder of data sets, so that what is installed here does not matter."""
    folder = tmp_path / "system"
    monkeypatch.setattr(public_sets, "SYSTEM_FOLDER", folder)
    return folder


def everything(dataset: Dataset | None) -> tuple[np.ndarray, np.ndarray]:
    assert dataset is not None
    return dataset.batch(np.arange(dataset.num_samples, dtype=np.int64))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_official_parts_are_images_in_the_unit_interval(
    tmp_path: Path, arrays: list[np.ndarray], suffix: str, name: str
) -> None:
    save(tmp_path / "images", arrays, suffix)
    loaded = load(replace(SPEC, name=name), tmp_path)
    assert (loaded.task, loaded.num_classes, loaded.num_outputs) == ("classification", 10, 10)
    assert loaded.input_shape == (1, 28, 28)
    for dataset, images, labels in ((loaded.train, *arrays[:2]), (loaded.evaluation, *arrays[2:])):
        inputs, targets = everything(dataset)
        assert inputs.dtype == np.float32 and inputs.flags.c_contiguous and targets.dtype == np.int64
        np.testing.assert_array_equal(inputs[:, 0], (images / 255).astype(np.float32))
        np.testing.assert_array_equal(targets, labels)
    assert loaded.description == (
        f"{name}: 30 samples to train on, 7 held out for evaluation; inputs of 1 x 28 x 28 values, 10 classes"
    )


def test_compression_is_told_by_content_and_other_spellings_are_known(tmp_path: Path, arrays: list[np.ndarray]) -> None:
    folder = save(tmp_path / "images", arrays)
    expected = load(SPEC, tmp_path).train.digest
    images, labels = folder / NAMES[0], folder / NAMES[1]
    images.write_bytes(gzip.compress(images.read_bytes()))
    labels.rename(folder / "train-labels.idx1-ubyte.gz")
    assert load(SPEC, tmp_path).train.digest == expected


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
def test_images_become_floats_batch_by_batch_with_the_same_bits(
    tmp_path: Path, arrays: list[np.ndarray], check: bool, standardize: bool
) -> None:
    save(tmp_path / "images", arrays)
    loaded = load(replace(SPEC, standardize=standardize), tmp_path, check=check)
    assert loaded.train._inputs.dtype == np.uint8
    inputs, _ = everything(loaded.train)
    np.testing.assert_array_equal(loaded.train.batch(np.array([4, 2]))[0], inputs[[4, 2]])
    if standardize:
        expected = (arrays[2] - arrays[0].mean(axis=0)) / arrays[0].std(axis=0)
        np.testing.assert_allclose(everything(loaded.evaluation)[0][:, 0], expected, rtol=1e-4, atol=1e-5)


def test_normalizing_is_of_images_in_the_unit_interval(tmp_path: Path, arrays: list[np.ndarray]) -> None:
    save(tmp_path / "images", arrays)
    spec = replace(SPEC, augment=Augment(shift=1, normalize=Normalize((0.286,), (0.353,))))
    loaded = load(spec, tmp_path)
    expected = (arrays[2] / 255 - 0.286) / 0.353
    np.testing.assert_allclose(everything(loaded.evaluation)[0][:, 0], expected, rtol=1e-5, atol=1e-6)
    batch = Batches(loaded.train, ShardPlan(30, 30, 1, 0), loaded.augment).load(0, 0)
    black = np.float32(-0.286 / 0.353)
    assert np.isclose(batch.inputs, black, rtol=1e-6).any(axis=(1, 2, 3)).sum() > 15


def test_the_cache_comes_before_the_system_and_only_a_complete_folder_counts(
    tmp_path: Path, arrays: list[np.ndarray], system_folder: Path
) -> None:
    cache = tmp_path / "cache"
    spec = replace(SPEC, folder=None)
    save(system_folder / "fashion-mnist", [array + (array.ndim == 3) for array in arrays], ".gz")
    from_system = load(spec, cache=cache).train.digest
    cached = save(public_sets.cache_folder("fashion-mnist", cache), arrays)
    assert load(spec, cache=cache).train.digest != from_system
    (cached / NAMES[3]).unlink()
    assert load(spec, cache=cache).train.digest == from_system
    assert load(spec).train.digest == from_system


@pytest.mark.parametrize("cache", [None, Path("cache")])
def test_a_missing_set_names_every_way_to_get_it(tmp_path: Path, arrays: list[np.ndarray], cache: Path | None) -> None:
    with pytest.raises(DataError) as raised:
        load(replace(SPEC, folder=None), cache=cache and tmp_path / cache)
    for words in (
        f"looked in {tmp_path}/cache/datasets/fashion-mnist (not there) and " if cache else "looked in ",
        f"{tmp_path}/system/fashion-mnist (not there)",
        "ddp-bp data fetch fashion-mnist",
        "apt-get install dataset-fashion-mnist",
        "set `folder` to the folder of its four IDX files (train-images-idx3-ubyte and so on, plain or .gz)",
    ):
        assert words in str(raised.value)
    folder = save(tmp_path / "cache" / "datasets" / "mnist", arrays)
    (folder / NAMES[1]).unlink()
    with pytest.raises(DataError) as raised:
        load(DataSpec(name="mnist"), cache=tmp_path / "cache")
    assert f"looked in {folder} (no train-labels-idx1-ubyte). " in str(raised.value)
    assert "apt-get" not in str(raised.value)


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        (
            0,
            lambda content: content[:-5],
            "{file} is cut: expected 23520 values, as its header says (30 x 28 x 28), got 23515",
        ),
        (0, lambda content: content + b"\0", "{file} is too long: expected 23520 values"),
        (0, lambda content: content[:9], "{file} is cut: its header has 16 bytes, got 9"),
        (
            1,
            lambda content: b"",
            "{file} is not an IDX file of bytes with 1 axes: expected it to start with 00 00 08 01, got an",
        ),
        (1, lambda content: b"\0\0\x08\x03" + content[4:], "expected it to start with 00 00 08 01, got 00 00 08 03"),
        (2, lambda content: b"\0\0\x0d\x03" + content[4:], "expected it to start with 00 00 08 03, got 00 00 0d 03"),
        (2, lambda content: b"<html>", "expected it to start with 00 00 08 03, got 3c 68 74 6d"),
        (3, lambda content: gzip.compress(content)[:-9], "{file} is a damaged or cut gzip file"),
        (3, lambda content: gzip.compress(content)[:12] + bytes(9), "{file} is a damaged or cut gzip file"),
        (3, lambda content: gzip.compress(content)[:-6] + bytes(6), "{file} is a damaged or cut gzip file (CRC"),
        (1, lambda content: idx(np.arange(29) % 10), "{images} has 30 images, {file} has 29 labels"),
        (
            1,
            lambda content: idx(np.full(30, 10)),
            "{file}, row 0 (counted from 0): expected a whole number from 0 to 9 as label",
        ),
        (2, lambda content: idx(np.ones((7, 28, 27))), "evaluation inputs must look like training inputs"),
        (
            1,
            None,
            "{folder}, where fashion-mnist shall be read from, has no train-labels-idx1-ubyte (plain or with .gz)",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_named(
    tmp_path: Path, arrays: list[np.ndarray], file: int, change: object, expected: str
) -> None:
    folder = save(tmp_path / "images", arrays)
    path = folder / NAMES[file]
    if callable(change):
        path.write_bytes(change(path.read_bytes()))
    else:
        path.unlink()
    with pytest.raises(DataError) as raised:
        load(SPEC, tmp_path)
    assert expected.format(file=path, images=folder / NAMES[0], folder=folder) in str(raised.value)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (replace(SPEC, folder="nowhere"), "{base}/nowhere, where fashion-mnist shall be read from, is not a folder"),
        (
            replace(SPEC, eval_fraction=0.0),
            "`eval_fraction` (0.0) has no meaning for 'fashion-mnist', whose images are",
        ),
        (replace(SPEC, seed=3), "`seed` (3) has no meaning for 'fashion-mnist'"),
        (replace(SPEC, target="z"), "`target` ('z') has no meaning for 'fashion-mnist'"),
        (DataSpec(name="fashion"), "did you mean 'fashion-mnist'?"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path: Path, spec: DataSpec, expected: str) -> None:
    with pytest.raises(DataError) as raised:
        load(spec, tmp_path)
    assert expected.format(base=tmp_path) in str(raised.value)
