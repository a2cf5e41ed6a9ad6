from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_bp.data import DataSpec, Loaded, convert, load
from ddp_bp.data import dataset as dataset_module
from ddp_bp.data.arrays import map_npy
from ddp_bp.data.dataset import Dataset
from ddp_bp.data.load import split_rows
from ddp_bp.errors import DataError

GENERATOR_SEED = 5


def everything(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    return dataset.batch(np.arange(dataset.num_samples, dtype=np.int64))


def complaint(spec: DataSpec, base: Path = Path()) -> str:
    with pytest.raises(DataError) as raised:
        load(spec, base)
    return str(raised.value)


def saved_npz(folder: Path, **arrays: Any) -> DataSpec:
    np.savez(folder / "data.npz", **arrays)
    return DataSpec(path="data.npz")


def saved_npy(folder: Path, inputs: Any, targets: Any) -> DataSpec:
    np.save(folder / "inputs.npy", inputs)
    np.save(folder / "targets.npy", targets)
    return DataSpec(path="inputs.npy", target_path="targets.npy")


@pytest.fixture
def samples() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(GENERATOR_SEED)
    return generator.normal(3, 2, size=(50, 4)), generator.integers(0, 3, size=50)


def test_digits_are_the_1797_images_scaled_to_one() -> None:
    loaded = load(DataSpec(name="digits"))
    assert (loaded.task, loaded.num_classes, loaded.num_outputs) == ("classification", 10, 10)
    assert loaded.input_shape == (64,)
    assert loaded.evaluation is not None
    assert (loaded.train.num_samples, loaded.evaluation.num_samples) == (1438, 359)
    inputs, targets = everything(load(DataSpec(name="digits", eval_fraction=0)).train)
    assert inputs.shape == (1797, 64) and inputs.dtype == np.float32 and targets.dtype == np.int64
    assert (inputs.min(), inputs.max()) == (0, 1)
    # Figures of the UCI data set, as scikit-learn's copy has them.
    assert np.bincount(targets).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert inputs.astype(np.float64).sum() * 16 == 561718
    assert "1438 samples to train on, 359 held out" in loaded.description


@given(st.integers(1, 200), st.floats(0, 0.99), st.integers(0, 2**64 - 1))
def test_a_split_divides_the_rows(num_samples: int, fraction: float, seed: int) -> None:
    try:
        train, held_out = split_rows(num_samples, fraction, seed)
    except DataError as error:
        assert "leaves none for" in str(error)
        return
    if train is None or held_out is None:
        assert fraction == 0 and train is held_out
        return
    assert abs(len(held_out) - num_samples * fraction) <= 0.5
    assert sorted([*train, *held_out]) == list(range(num_samples))


def test_the_seed_decides_the_split() -> None:
    rows = [split_rows(100, 0.3, seed)[1] for seed in (1, 1, 2)]
    assert rows[0] is not None and rows[1] is not None and rows[2] is not None
    np.testing.assert_array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("eval_fraction", [0.0, 0.2])
def test_every_format_gives_the_same_bits(
    tmp_path: Path, samples: tuple[np.ndarray, np.ndarray], standardize: bool, eval_fraction: float
) -> None:
    inputs, targets = samples
    rows = [",".join([*map(repr, row.tolist()), str(target)]) for row, target in zip(inputs, targets, strict=True)]
    (tmp_path / "data.csv").write_text("\n".join(rows))
    specs = [
        saved_npz(tmp_path, x=inputs, y=targets),
        saved_npy(tmp_path, inputs, targets),
        DataSpec(path="data.csv"),
    ]
    loaded = [
        load(replace(spec, standardize=standardize, eval_fraction=eval_fraction), tmp_path, check=check)
        for spec in specs
        for check in (True, False)
    ]
    assert len({one.train.digest for one in loaded}) == 1
    assert len({one.evaluation.digest if one.evaluation else None for one in loaded}) == 1
    assert {(one.task, one.num_classes, one.input_shape) for one in loaded} == {("classification", 3, (4,))}


def test_standardizing_uses_the_training_part_only(tmp_path: Path, samples: tuple[np.ndarray, np.ndarray]) -> None:
    inputs, targets = samples
    inputs[:, 1] = 0.1  # the same in every sample, with a mean that rounding may move
    inputs[:, 2] = 2.0
    spec = replace(saved_npz(tmp_path, x=inputs, y=targets), standardize=True)
    loaded = load(spec, tmp_path)
    train_rows, eval_rows = split_rows(50, 0.2, 0)
    assert loaded.evaluation is not None
    varying = [0, 3]
    mean, deviation = inputs[train_rows].mean(axis=0), inputs[train_rows].std(axis=0)
    for dataset, rows in ((loaded.train, train_rows), (loaded.evaluation, eval_rows)):
        got, _ = everything(dataset)
        expected = (inputs[rows][:, varying] - mean[varying]) / deviation[varying]
        np.testing.assert_allclose(got[:, varying], expected, atol=1e-6)
        np.testing.assert_array_equal(got[:, 1:3], 0)


def test_a_file_of_evaluation_samples(tmp_path: Path, samples: tuple[np.ndarray, np.ndarray]) -> None:
    inputs, targets = samples
    np.savez(tmp_path / "eval.npz", x=inputs[:7] + 1, y=targets[:7])
    loaded = load(replace(saved_npz(tmp_path, x=inputs, y=targets), eval_path="eval.npz"), tmp_path)
    assert loaded.train.num_samples == 50
    assert loaded.evaluation is not None
    np.testing.assert_array_equal(everything(loaded.evaluation)[0], (inputs[:7] + 1).astype(np.float32))


@pytest.mark.parametrize(
    ("targets", "changes", "expected"),
    [
        (np.array([0, 1, 2, 1, 0]), {}, ("classification", 3, 3)),
        (np.array([[0], [1], [2], [1], [0]], dtype=np.uint8), {}, ("classification", 3, 3)),
        (np.array([False, True, True, False, True]), {}, ("classification", 2, 2)),
        (np.array([0, 1, 2, 1, 0], dtype=np.int8), {"num_classes": 300}, ("classification", 300, 300)),
        (np.array([0.0, 1, 2, 1, 0]), {}, ("regression", None, 1)),
        (np.array([0.0, 1, 2, 1, 0]), {"task": "classification"}, ("classification", 3, 3)),
        (np.array([0.0, 1, 2, 1, 0], dtype=np.float16), {"num_classes": 3}, ("classification", 3, 3)),
        (np.array([10, 20, 7, 1, -3]), {"task": "regression"}, ("regression", None, 1)),
        (np.ones((5, 4), dtype=np.int64), {}, ("regression", None, 4)),
    ],
)
@pytest.mark.parametrize("saved", ["npz", "npy"])
def test_the_task_follows_from_the_targets(
    tmp_path: Path, targets: np.ndarray, changes: dict[str, Any], expected: tuple[str, int | None, int], saved: str
) -> None:
    inputs = np.arange(5.0)
    spec = saved_npz(tmp_path, x=inputs, y=targets) if saved == "npz" else saved_npy(tmp_path, inputs, targets)
    loaded = load(replace(spec, eval_fraction=0, **changes), tmp_path)
    assert (loaded.task, loaded.num_classes, loaded.num_outputs) == expected
    got_inputs, got = everything(loaded.train)
    assert got_inputs.shape == (5, 1)
    if loaded.task == "classification":
        assert got.dtype == np.int64 and got.tolist() == targets.reshape(-1).tolist()
    else:
        assert got.dtype == np.float32 and got.tolist() == targets.reshape(5, -1).tolist()


def test_whole_numbers_in_a_csv_column_are_classes(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1.5,0\n2.5,1\n3.5,1\n")
    assert load(DataSpec(path="data.csv", eval_fraction=0), tmp_path).task == "classification"
    (tmp_path / "data.csv").write_text("1.5,0\n2.5,1.5\n3.5,1\n")
    assert load(DataSpec(path="data.csv", eval_fraction=0), tmp_path).task == "regression"


X = np.arange(12.0).reshape(6, 2)
Y = np.array([0, 1, 2, 0, 1, 2])


def changed(array: np.ndarray, position: Any, value: Any) -> np.ndarray:
    copy = array.copy()
    copy[position] = value
    return copy


@pytest.mark.parametrize("saved", ["npz", "npy"])
@pytest.mark.parametrize(
    ("inputs", "targets", "changes", "expected"),
    [
        (changed(X, (4, 1), np.nan), Y, {}, "row 4 (counted from 0), column 1: nan is not a finite number"),
        (changed(X, (5, 0), np.inf), Y, {}, "row 5 (counted from 0), column 0: inf is not a finite number"),
        (changed(X, (3, 0), 1e39), Y, {}, "row 3 (counted from 0), column 0: 1e+39 is beyond the range of float32"),
        (X.reshape(6, 1, 2) * np.nan, Y, {}, "row 0 (counted from 0), column (0, 0): nan"),
        (X, changed(Y * 0.5, 2, np.nan), {}, "row 2 (counted from 0): nan is not a finite number"),
        (X, Y, {"num_classes": 2}, "row 2 (counted from 0): expected a whole number from 0 to 1 as label, got 2"),
        (X, Y - 1, {}, "row 0 (counted from 0): expected a whole number from 0 as label, got -1; set `task`"),
        (X, Y + 0.5, {"task": "classification"}, "row 0 (counted from 0): expected a whole number from 0 as label"),
        (X, changed(Y * 1.0, 3, np.inf), {"num_classes": 9}, "row 3 (counted from 0): expected a whole number"),
        (X, Y * 1000, {}, "whole numbers up to 2000 for 6 samples, which does not look like classes"),
        (X, Y * 0, {}, "the same label 0 for every sample"),
        (X, np.ones((6, 2)), {"task": "classification"}, "one label for each sample, got shape (6, 2)"),
        (X, Y[:5], {}, "every input needs one target"),
        (X[:0], Y[:0], {}, "has no samples: its shape is (0, 2)"),
        (X[:, :0], Y, {}, "no values for its samples: its shape is (6, 0)"),
        (X, np.ones((6, 2, 2)), {}, "must have shape (N,) or (N, K), got (6, 2, 2)"),
        (X.astype(np.complex64), Y, {}, "must hold real numbers, got dtype complex64"),
        (X.astype(str), Y, {}, "must hold real numbers, got dtype <U32"),
        (np.float64(3), Y, {}, "must have one row for each sample, got a single value"),
        (X.astype(object), Y, {}, "it holds Python objects"),
        (X, Y, {"eval_fraction": 0.01}, "`eval_fraction` 0.01 of 6 samples leaves none for evaluation"),
        (X, Y, {"eval_fraction": 0.99}, "leaves none for training"),
    ],
)
def test_what_cannot_be_trained_on_is_named(
    tmp_path: Path, inputs: Any, targets: Any, changes: dict[str, Any], expected: str, saved: str
) -> None:
    spec = saved_npz(tmp_path, x=inputs, y=targets) if saved == "npz" else saved_npy(tmp_path, inputs, targets)
    text = complaint(replace(spec, **changes), tmp_path)
    assert expected in text
    assert "eval_fraction" in text or (f"{tmp_path}/data.npz" if saved == "npz" else f"{tmp_path}/") in text


def test_a_label_in_a_csv_file_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b,kind\n1,2,0\n\n1,2,7\n")
    text = complaint(DataSpec(path="data.csv", num_classes=3), tmp_path)
    assert f"column 2 ('kind') of {tmp_path}/data.csv, line 4: expected a whole number from 0 to 2" in text
    (tmp_path / "data.csv").write_text("a,b,kind\n1,2,0\n\n1,1e300,1\n")
    assert "line 4, column 'b': 1e+300 is beyond the range" in complaint(DataSpec(path="data.csv"), tmp_path)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (DataSpec(), "no data: set `name` to a packaged data set (digits, "),
        (DataSpec(name="digits", path="a.csv"), "both `name` ('digits') and `path` ('a.csv') are set"),
        (DataSpec(name="digit"), "no packaged data set 'digit'; there is 'digits', 'diabetes', 'tinyshakespeare'"),
        (DataSpec(name="diabetis"), "for a file of your own set `path` instead; did you mean 'diabetes'?"),
        (DataSpec(name="digits", target="z"), "`target` ('z') has no meaning for the packaged data set"),
        (DataSpec(name="digits", inputs="z"), "`inputs` ('z') has no meaning for the packaged data set"),
        (DataSpec(name="digits", eval_path="z"), "`eval_path` ('z') has no meaning"),
        (DataSpec(name="digits", target_path="z"), "`target_path` ('z') has no meaning"),
        (DataSpec(name="digits", eval_fraction=1.0), "`eval_fraction` must be at least 0 and below 1, got 1.0"),
        (DataSpec(name="digits", eval_fraction=float("nan")), "got nan"),
        (DataSpec(name="digits", num_classes=1), "`num_classes` must be at least 2, got 1"),
        (DataSpec(name="digits", num_classes=9), "expected a whole number from 0 to 8 as label, got 9"),
        (DataSpec(name="digits", num_classes=9, task="regression"), "has no meaning for regression"),
        (DataSpec(name="digits", task="guess"), "auto, classification or regression, got 'guess'"),  # type: ignore[arg-type]
        (DataSpec(name="digits", folder="z"), "`folder` ('z') has no meaning for the packaged data set 'digits'"),
        (DataSpec(path="data.npz", context=8), "`context` (8) has no meaning for the file 'data.npz'"),
        (DataSpec(name="digits", input_shape=()), "`input_shape` must be one or more lengths of at least 1, got []"),
        (DataSpec(name="digits", input_shape=(8, 0)), "at least 1, got [8, 0]"),
        (DataSpec(name="digits", input_shape=(8, 9)), "`input_shape` [8, 9] has 72 values, but the inputs of digits"),
        (
            DataSpec(name="digits", standardize_targets=True),
            "`standardize_targets` is for regression, but digits holds",
        ),
        (DataSpec(name="digits", seed=-1), "`seed` must be in [0, 2**64), got -1"),
        (DataSpec(path="data.npz", eval_target_path="z.npy"), "is set without `eval_path`"),
        (DataSpec(path="dta.npz"), "no data file {base}/dta.npz; did you mean 'data.npz'?"),
        (DataSpec(path="bare/data.npz"), "no data file {base}/bare/data.npz"),
        (DataSpec(path="missing/data.npz"), "there is no folder {base}/missing"),
        (DataSpec(path="."), "{base} is not a file"),
        (DataSpec(path="data.dat"), "{base}/data.dat: expected a file that ends in .npz, .npy, .csv, .txt, got '.dat'"),
        (DataSpec(path="plain"), "got 'no suffix'"),
        (DataSpec(path="data.npz", target="z"), "{base}/data.npz has no array 'z'; it has 'x', 'y'"),
        (DataSpec(path="data.npz", inputs="X"), "{base}/data.npz has no array 'X'"),
        (DataSpec(path="data.npz", target_path="y.npy"), "{base}/data.npz holds its own targets"),
        (DataSpec(path="data.csv", inputs="z"), "`inputs` ('z') names an array of a .npz file"),
        (DataSpec(path="x.npy"), "{base}/x.npy holds inputs only: name the .npy file of its targets"),
        (DataSpec(path="x.npy", target_path="y.npy", target="z"), "`target` ('z') names an array or a column"),
        (DataSpec(path="x.npy", target_path="data.npz"), "the targets of {base}/x.npy must be a .npy file"),
        (DataSpec(path="x.npy", target_path="absent.npy"), "no data file {base}/absent.npy"),
        (DataSpec(path="renamed.npz"), "{base}/renamed.npz holds a single array"),
        (DataSpec(path="renamed.npy", target_path="y.npy"), "{base}/renamed.npy holds several arrays"),
        (DataSpec(path="short.npz"), "{base}/short.npz is not a readable .npz file"),
        (DataSpec(path="flipped.npz"), "{base}/flipped.npz cannot be read"),
        (DataSpec(path="short.npy", target_path="y.npy"), "{base}/short.npy is not a readable .npy file"),
        (DataSpec(path="text.npy", target_path="y.npy"), "it holds Python objects, or is not a NumPy file"),
        (DataSpec(path="empty.npy", target_path="y.npy"), "{base}/empty.npy is not a readable .npy file"),
        (DataSpec(path="data.npz", eval_path="wide.npz"), "evaluation inputs must look like training inputs"),
        (DataSpec(path="data.npz", eval_path="high.npz"), "{base}/high.npz, row 1 (counted from 0): expected a whole"),
        (DataSpec(path="data.csv", eval_path="other.csv"), "evaluation columns must be those of training"),
        (DataSpec(path="real.npz", eval_path="pairs.npz"), "evaluation targets must look like training targets"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, spec: DataSpec, expected: str) -> None:
    (tmp_path / "bare").mkdir()
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    np.savez(tmp_path / "wide.npz", x=np.ones((6, 3)), y=Y)
    np.savez(tmp_path / "high.npz", x=X, y=Y * 3)
    np.savez(tmp_path / "real.npz", x=X, y=Y * 0.5)
    np.savez(tmp_path / "pairs.npz", x=X, y=X)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    (tmp_path / "renamed.npz").write_bytes((tmp_path / "x.npy").read_bytes())
    (tmp_path / "renamed.npy").write_bytes((tmp_path / "data.npz").read_bytes())
    whole = (tmp_path / "data.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[:-30])
    flip = whole.index(X.tobytes())
    (tmp_path / "flipped.npz").write_bytes(whole[:flip] + b"\x55" + whole[flip + 1 :])
    (tmp_path / "short.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-8])
    (tmp_path / "text.npy").write_text("1 2 3")
    (tmp_path / "empty.npy").write_text("")
    (tmp_path / "data.dat").write_text("1,2\n")
    (tmp_path / "plain").write_text("1,2\n")
    (tmp_path / "data.csv").write_text("a,b,kind\n1,2,0\n1,2,1\n")
    (tmp_path / "other.csv").write_text("b,a,kind\n1,2,0\n1,2,1\n")
    assert expected.format(base=tmp_path) in complaint(spec, tmp_path)


def test_all_bad_settings_are_reported_at_once() -> None:
    text = complaint(DataSpec(eval_fraction=2, num_classes=0, seed=-1))
    assert all(name in text for name in ("`name`", "`eval_fraction`", "`num_classes`", "`seed`"))


def test_an_absolute_path_does_not_depend_on_the_base(tmp_path: Path) -> None:
    spec = saved_npz(tmp_path, x=X, y=Y)
    loaded: Loaded = load(replace(spec, path=str(tmp_path / "data.npz")), Path("/nowhere"))
    assert loaded.num_classes == 3


def test_without_check_inputs_are_not_scanned(tmp_path: Path) -> None:
    spec = saved_npz(tmp_path, x=changed(X, (4, 1), np.nan), y=Y)
    assert load(spec, tmp_path, check=False).num_classes == 3


@pytest.mark.parametrize("fortran_order", [False, True])
def test_a_mapped_file_is_not_read_into_memory(
    tmp_path: Path, fortran_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sparse file of 1 TiB, more than any memory, only the samples asked for are read."""
    monkeypatch.setattr(dataset_module, "_DIGEST_NUM_SAMPLES", 50)
    num_samples = 2**33
    for name, shape, dtype in (("x.npy", (num_samples, 32), "<f4"), ("y.npy", (num_samples,), "|u1")):
        with (tmp_path / name).open("wb") as file:
            header = {"shape": shape, "descr": dtype, "fortran_order": fortran_order}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)
    source = map_npy(tmp_path / "x.npy", tmp_path / "y.npy")
    dataset = Dataset(source.inputs, source.targets)
    inputs, targets = dataset.batch(np.array([0, num_samples - 1]))
    assert inputs.shape == (2, 32) and inputs.flags.c_contiguous
    assert type(inputs) is np.ndarray and type(targets) is np.ndarray
    # The file system takes milliseconds for each page of a hole, and Fortran order touches a page for each value.
    assert fortran_order or len(dataset.digest) == 64


def test_diabetes_are_442_patients_as_measured() -> None:
    loaded = load(DataSpec(name="diabetes", eval_fraction=0))
    assert (loaded.task, loaded.num_classes, loaded.num_outputs, loaded.input_shape) == ("regression", None, 1, (10,))
    inputs, targets = everything(loaded.train)
    assert inputs.shape == (442, 10) and targets.shape == (442, 1) and targets.dtype == np.float32
    # Figures of the table that the authors published: age in years, sex, and the progression.
    assert (inputs[:, 0].min(), inputs[:, 0].max(), set(inputs[:, 1])) == (19, 79, {1, 2})
    assert (targets.min(), targets.max(), targets.astype(np.float64).sum()) == (25, 346, 67243)


def test_standardized_targets_have_the_training_parts_scale() -> None:
    loaded = load(DataSpec(name="diabetes", standardize_targets=True))
    raw = load(DataSpec(name="diabetes"))
    assert loaded.evaluation is not None and raw.evaluation is not None
    train = everything(loaded.train)[1].astype(np.float64)
    np.testing.assert_allclose([train.mean(), train.std()], [0, 1], atol=1e-6)
    raw_train = everything(raw.train)[1].astype(np.float64)
    expected = (everything(raw.evaluation)[1] - raw_train.mean()) / raw_train.std()
    np.testing.assert_allclose(everything(loaded.evaluation)[1], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(everything(loaded.evaluation)[0], everything(raw.evaluation)[0])


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("fortran_order", [False, True])
def test_inputs_are_given_another_shape(
    tmp_path: Path, samples: tuple[np.ndarray, np.ndarray], standardize: bool, fortran_order: bool
) -> None:
    inputs, targets = samples
    spec = saved_npy(tmp_path, np.asfortranarray(inputs) if fortran_order else inputs, targets)
    flat = load(replace(spec, standardize=standardize), tmp_path)
    shaped = load(replace(spec, standardize=standardize, input_shape=(2, 1, 2)), tmp_path)
    assert shaped.input_shape == (2, 1, 2)
    np.testing.assert_array_equal(everything(shaped.train)[0], everything(flat.train)[0].reshape(-1, 2, 1, 2))


def described(loaded: Loaded) -> dict[str, Any]:
    assert loaded.conversion is not None
    description: dict[str, Any] = json.loads(json.dumps(loaded.conversion.description()))
    return description


def test_what_was_done_to_the_values_is_told_to_those_who_have_other_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(GENERATOR_SEED)
    inputs, targets = rng.normal(5, 3, (30, 4)), rng.normal(-2, 9, (30, 2))
    spec = replace(saved_npz(tmp_path, x=inputs, y=targets), task="regression", input_shape=(2, 2))
    plain = described(load(spec, tmp_path))
    assert plain == {"input_shape": [2, 2], "inputs": None, "targets": None}
    loaded = load(replace(spec, standardize=True, standardize_targets=True), tmp_path)
    told = described(loaded)
    rows, _ = split_rows(30, 0.2, 0)
    for raw, scaling, got in zip(
        (inputs[rows].reshape(-1, *told["input_shape"]), targets[rows]),
        (told["inputs"], told["targets"]),
        everything(loaded.train),
        strict=True,
    ):
        expected = (raw - scaling["mean"]) / scaling["deviation"]
        np.testing.assert_array_equal(got, expected.astype(np.float32))


def test_the_scale_of_images_is_one_number() -> None:
    assert described(load(DataSpec(name="digits")))["inputs"] == {"mean": 0.0, "deviation": 16.0}


def test_more_values_than_a_checkpoint_has_room_for_are_not_told(
    tmp_path: Path, samples: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "MAX_DESCRIBED_VALUES", 3)
    told = described(load(replace(saved_npz(tmp_path, x=samples[0], y=samples[1]), standardize=True), tmp_path))
    assert "inputs" not in told and told["targets"] is None
