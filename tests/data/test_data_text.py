from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_bp.data import Augment, Batches, Dataset, DataSpec, Loaded, ShardPlan, load
from ddp_bp.data.text import divide_text
from ddp_bp.errors import DataError


def written(loaded: Loaded, codes: np.ndarray) -> str:
    assert loaded.vocabulary is not None
    return "".join(loaded.vocabulary[code] for code in codes)


def everything(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    return dataset.batch(np.arange(dataset.num_samples, dtype=np.int64))


def test_tinyshakespeare_is_the_whole_text_with_its_end_held_out() -> None:
    loaded = load(DataSpec(name="tinyshakespeare", context=100))
    assert (loaded.task, loaded.num_classes, loaded.num_outputs) == ("classification", 65, 65)
    assert loaded.input_shape == (100,) and loaded.vocabulary is not None and loaded.evaluation is not None
    assert loaded.vocabulary == "".join(sorted(loaded.vocabulary)) and loaded.vocabulary.startswith("\n !$&'")
    inputs, targets = everything(loaded.train)
    # 1,115,394 characters, of which 111,539 are held out.
    assert inputs.shape == targets.shape == ((1_003_855 - 1) // 100, 100)
    assert inputs.dtype == targets.dtype == np.int64 and inputs.flags.c_contiguous
    assert written(loaded, inputs[0]).startswith("First Citizen:\nBefore we proceed any further")
    np.testing.assert_array_equal(inputs.reshape(-1)[1:], targets.reshape(-1)[:-1])
    held_out, _ = everything(loaded.evaluation)
    assert held_out.shape == ((111_539 - 1) // 100, 100)
    assert written(loaded, held_out[0]).startswith("\n\nGREMIO:\nGood morrow, neighbour Baptista.")
    assert loaded.description == (
        "tinyshakespeare: 10038 samples to train on, 1115 held out for evaluation; inputs of 100 values, 65 classes"
    )


@given(
    text=st.text(st.characters(codec="utf-8"), min_size=4, max_size=60).filter(lambda text: len(set(text)) > 1),
    window=st.integers(1, 8),
    fraction=st.sampled_from([0.0, 0.1, 0.3]),
)
def test_windows_hold_each_character_once_and_the_next_one(text: str, window: int, fraction: float) -> None:
    try:
        parts = divide_text(text, "it", window, fraction)
    except DataError as error:
        assert "one sample takes" in str(error)
        return
    num_held_out = int(len(text) * fraction + 0.5)
    train, held_out = text[: len(text) - num_held_out], text[len(text) - num_held_out :]
    assert (parts.evaluation is None) == (fraction == 0)
    for source, part in ((parts.train, train), (parts.evaluation, held_out)):
        if source is None:
            continue
        assert source.vocabulary == "".join(sorted(set(text)))
        used = source.inputs.size
        assert used == (len(part) - 1) // window * window
        assert "".join(source.vocabulary[code] for code in source.inputs.reshape(-1)) == part[:used]
        assert "".join(source.vocabulary[code] for code in source.targets.reshape(-1)) == part[1 : used + 1]


def test_a_users_own_text_keeps_every_character(tmp_path: Path) -> None:
    text = "Zwölf Boxkämpfer\r\njagen 🦊\n" * 3
    (tmp_path / "own.txt").write_bytes("\N{BOM}".encode() + text.encode())
    (tmp_path / "packed.txt").write_bytes(gzip.compress(text.encode()))
    specs = [DataSpec(path=name, context=7, eval_fraction=0.25) for name in ("own.txt", "packed.txt")]
    first, second = (load(spec, tmp_path) for spec in specs)
    assert first.vocabulary == "".join(sorted(set(text)))
    assert written(first, everything(first.train)[0][0]) == text[:7]
    assert first.train.digest == second.train.digest
    assert first.num_classes == len(set(text))


def test_a_text_to_evaluate_on_is_read_in_the_vocabulary_of_training(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("abcdefg\n" * 4)
    (tmp_path / "eval.txt").write_text("gag\nbad\n" * 2)
    (tmp_path / "other.txt").write_text("gag\nbad\nxyz")
    loaded = load(DataSpec(path="train.txt", eval_path="eval.txt", context=5), tmp_path)
    assert loaded.evaluation is not None and loaded.vocabulary == "\nabcdefg"
    assert written(loaded, everything(loaded.evaluation)[0].reshape(-1)) == ("gag\nbad\n" * 2)[:15]
    assert loaded.train.num_samples == 31 // 5
    with pytest.raises(DataError, match=r"other.txt, line 3: the character 'x' is not in the training text"):
        load(DataSpec(path="train.txt", eval_path="other.txt", context=5), tmp_path)


def test_batches_of_text_are_integers() -> None:
    loaded = load(DataSpec(name="tinyshakespeare"))
    assert loaded.input_shape == (64,)
    batch = Batches(loaded.train, ShardPlan(loaded.train.num_samples, 12, 4, 0), loaded.augment).load(3, 1)
    assert batch.inputs.dtype == batch.targets.dtype == np.int64
    assert batch.inputs.shape == batch.targets.shape == (3, 64)
    np.testing.assert_array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (DataSpec(path="empty.txt"), "{base}/empty.txt is empty: there is nothing to learn from it"),
        (DataSpec(path="same.txt"), "{base}/same.txt has no other character than 'a'"),
        (DataSpec(path="latin.txt"), "{base}/latin.txt is not UTF-8 text (invalid start byte in byte 1)"),
        (
            DataSpec(path="short.txt", context=3),
            "the evaluation part of {base}/short.txt has 1 characters, but one sample",
        ),
        (
            DataSpec(path="short.txt", context=9),
            "the training part of {base}/short.txt has 9 characters, but one sample",
        ),
        (DataSpec(path="short.txt", context=9, eval_fraction=0), ""),
        (DataSpec(path="short.txt", context=10, eval_fraction=0), "{base}/short.txt has 10 characters, but one sample"),
        (DataSpec(path="short.txt", context=0), "`context` must be at least 1, got 0"),
        (DataSpec(path="cut.txt"), "{base}/cut.txt is a damaged or cut gzip file"),
        (DataSpec(path="sort.txt"), "there is no data file {base}/sort.txt; did you mean 'short.txt'?"),
        (
            DataSpec(path="short.txt", eval_path="data.csv"),
            "the evaluation samples of the text {base}/short.txt must be",
        ),
        (DataSpec(path="data.csv", eval_path="short.txt"), "expected a file that ends in .npz, .npy, .csv, got '.txt'"),
        (DataSpec(path="short.txt", standardize=True), "`standardize` (True) has no meaning for the text 'short.txt'"),
        (DataSpec(path="short.txt", num_classes=9), "`num_classes` (9) has no meaning for the text"),
        (DataSpec(path="short.txt", seed=9), "`seed` (9) has no meaning for the text"),
        (DataSpec(path="short.txt", input_shape=(8, 8)), "`input_shape` ((8, 8)) has no meaning for the text"),
        (DataSpec(path="short.txt", augment=Augment(flip=True)), "`augment` has no meaning for the text"),
        (
            DataSpec(name="tinyshakespeare", eval_path="a.txt"),
            "`eval_path` ('a.txt') has no meaning for the packaged text",
        ),
        (DataSpec(name="tinyshakespear"), "did you mean 'tinyshakespeare'?"),
    ],
)
def test_what_is_wrong_with_a_text_is_named(tmp_path: Path, spec: DataSpec, expected: str) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "same.txt").write_text("aaaa" * 100)
    (tmp_path / "latin.txt").write_bytes("für Elise".encode("latin-1"))
    (tmp_path / "short.txt").write_text("abcdefghij")
    (tmp_path / "cut.txt").write_bytes(gzip.compress(b"abc" * 100)[:-9])
    (tmp_path / "data.csv").write_text("1,2,0\n1,2,1\n")
    if not expected:
        assert load(spec, tmp_path).train.num_samples == 1
        return
    with pytest.raises(DataError) as raised:
        load(spec, tmp_path)
    assert expected.format(base=tmp_path) in str(raised.value)
