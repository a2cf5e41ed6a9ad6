"""From a `DataSpec` to data sets: reads, checks, splits and standardizes.

This is where the rest of the room meets. It must not know about steps, shards or models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddp_bp.data.arrays import map_npy, read_npz
from ddp_bp.data.check import check_arrays, check_finite, check_labels, count_classes, task_of
from ddp_bp.data.csv_file import read_csv
from ddp_bp.data.dataset import Dataset, Standardization, standardization_of, to_float32
from ddp_bp.data.order import SPLIT, random_order
from ddp_bp.data.packaged_sets import read_packaged
from ddp_bp.data.source import Source, suggestion
from ddp_bp.data.spec import DataSpec, Task
from ddp_bp.errors import DataError

_SUFFIXES = (".npz", ".npy", ".csv")


@dataclass(frozen=True)
class Loaded:
    """Data ready to train on.

    `num_outputs` is what a model must give for each sample: the number of classes, or the number of target values K.
    `num_classes` is None for regression; `evaluation` is None when nothing is held out. `input_shape` is the shape of
    one input. `description` is one line for people.
    """

    train: Dataset
    evaluation: Dataset | None
    task: Task
    num_classes: int | None
    num_outputs: int
    input_shape: tuple[int, ...]
    description: str


def load(spec: DataSpec, base: Path = Path(), *, check: bool = True) -> Loaded:
    """Loads what `spec` describes; its relative paths are resolved against the folder `base`.

    With `check`, every input and target is looked at. Without it the scan for NaN and infinity is left out, for a
    process whose parent has already done it; labels are always checked. The result is the same bits in every process.

    Raises DataError, naming file, row and column, for anything that cannot be trained on.
    """
    problems = spec.problems()
    if problems:
        raise DataError("the data settings cannot be used: " + "; ".join(problems))
    source = _read(spec, base, check)
    task = task_of(source, spec.task, spec.num_classes)
    num_classes = None
    if task == "classification":
        num_classes = spec.num_classes or count_classes(source)
    _check_values(source, num_classes, check)
    if spec.eval_path is None:
        train_rows, eval_rows = split_rows(len(source.inputs), spec.eval_fraction, spec.seed)
        eval_source = source if eval_rows is not None else None
    else:
        train_rows = eval_rows = None
        eval_source = _read(replace(spec, path=spec.eval_path, target_path=spec.eval_target_path), base, check)
        _check_same_layout(source, eval_source)
        _check_values(eval_source, num_classes, check)
    standardization = standardization_of(source.inputs, train_rows) if spec.standardize else None
    train = _dataset(source, train_rows, standardization, task)
    evaluation = None if eval_source is None else _dataset(eval_source, eval_rows, standardization, task)
    num_outputs = num_classes or int(np.prod(source.targets.shape[1:]))
    return Loaded(
        train=train,
        evaluation=evaluation,
        task=task,
        num_classes=num_classes,
        num_outputs=num_outputs,
        input_shape=train.input_shape,
        description=_describe(source.input_file, train, evaluation, num_classes, num_outputs),
    )


def split_rows(
    num_samples: int, eval_fraction: float, seed: int
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
    """(training rows, evaluation rows), both int64 and ascending; (None, None) when nothing is held out.

    round(num_samples * eval_fraction) rows are held out, halves rounded up. Raises DataError if that leaves either part
    without samples.
    """
    if eval_fraction == 0:
        return None, None
    num_held_out = int(num_samples * eval_fraction + 0.5)
    if not 0 < num_held_out < num_samples:
        part = "evaluation" if num_held_out == 0 else "training"
        raise DataError(
            f"`eval_fraction` {eval_fraction} of {num_samples} samples leaves none for {part}: "
            f"change it, give more samples, or set it to 0 to train without evaluation"
        )
    order = random_order(num_samples, seed=seed, index=0, purpose=SPLIT)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def _read(spec: DataSpec, base: Path, check: bool) -> Source:
    if spec.path is None:
        source = read_packaged(spec.name or "")
    else:
        try:
            source = _read_file(spec, spec.path, base, check)
        except OSError as error:
            raise DataError(f"{error.filename or spec.path} cannot be read: {error.strerror or error}") from error
    check_arrays(source)
    return source


def _read_file(spec: DataSpec, written: str, base: Path, check: bool) -> Source:
    path = _existing(base, written)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise DataError(f"{path}: expected a file that ends in {', '.join(_SUFFIXES)}, got {suffix or 'no suffix'!r}")
    if suffix != ".npy" and spec.target_path is not None:
        raise DataError(f"{path} holds its own targets: a file of targets ({spec.target_path}) is only for .npy files")
    if suffix != ".npz" and spec.inputs != "x":
        raise DataError(f"`inputs` ({spec.inputs!r}) names an array of a .npz file, but the data is {path}")
    if suffix == ".npz":
        return read_npz(path, spec.inputs, spec.target or "y")
    if suffix == ".csv":
        return read_csv(path, spec.target, check=check)
    if spec.target is not None:
        raise DataError(f"`target` ({spec.target!r}) names an array or a column, but {path} has neither: remove it")
    if spec.target_path is None:
        raise DataError(f"{path} holds inputs only: name the .npy file of its targets as well")
    target_path = _existing(base, spec.target_path)
    if target_path.suffix.lower() != ".npy":
        raise DataError(f"{target_path}: the targets of {path} must be a .npy file as well")
    return map_npy(path, target_path)


def _existing(base: Path, written: str) -> Path:
    path = base / Path(written).expanduser()
    if path.is_file():
        return path
    if path.exists():
        raise DataError(f"{path} is not a file: name a file that ends in {', '.join(_SUFFIXES)}")
    if not path.parent.is_dir():
        raise DataError(f"there is no data file {path}; there is no folder {path.parent}")
    siblings = [entry.name for entry in path.parent.iterdir()]
    raise DataError(f"there is no data file {path}{suggestion(path.name, siblings)}")


def _check_values(source: Source, num_classes: int | None, check: bool) -> None:
    if num_classes is not None:
        check_labels(source, num_classes)
    elif check:
        check_finite(source.targets, source.target_file, source)
    if check:
        check_finite(source.inputs, source.input_file, source)


def _check_same_layout(source: Source, other: Source) -> None:
    if source.inputs.shape[1:] != other.inputs.shape[1:]:
        raise DataError(
            f"evaluation inputs must look like training inputs: {source.input_file} has inputs of shape "
            f"{source.inputs.shape[1:]}, {other.input_file} of shape {other.inputs.shape[1:]}"
        )
    if source.columns is not None and other.columns is not None and source.columns != other.columns:
        raise DataError(
            f"evaluation columns must be those of training: {source.input_file} has {', '.join(source.columns)}; "
            f"{other.input_file} has {', '.join(other.columns)}"
        )
    if np.prod(source.targets.shape[1:]) != np.prod(other.targets.shape[1:]):
        raise DataError(
            f"evaluation targets must look like training targets: {source.target_file} has shape "
            f"{source.targets.shape}, {other.target_file} has shape {other.targets.shape}"
        )


def _dataset(
    source: Source, rows: NDArray[np.int64] | None, standardization: Standardization | None, task: Task
) -> Dataset:
    targets = source.targets.reshape(-1) if task == "classification" else source.targets
    target_dtype = np.int64 if task == "classification" else np.float32
    if source.is_mapped:
        return Dataset(source.inputs, targets, rows=rows, standardization=standardization, target_dtype=target_dtype)
    # In memory the conversions are made once, here, rather than for every batch. The bits are the same.
    inputs = source.inputs if rows is None else source.inputs[rows]
    chosen = targets if rows is None else targets[rows]
    return Dataset(to_float32(inputs, standardization), chosen.astype(target_dtype), target_dtype=target_dtype)


def _describe(
    called: str, train: Dataset, evaluation: Dataset | None, num_classes: int | None, num_outputs: int
) -> str:
    held_out = "none held out" if evaluation is None else f"{evaluation.num_samples} held out for evaluation"
    size = " x ".join(map(str, train.input_shape))
    goal = f"{num_outputs} target values" if num_classes is None else f"{num_classes} classes"
    return f"{called}: {train.num_samples} samples to train on, {held_out}; inputs of {size} values, {goal}"
