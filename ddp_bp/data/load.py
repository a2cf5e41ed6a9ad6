"""From a `DataSpec` to data sets: reads, checks, divides and converts.

This is where the rest of the room meets. It must not know about steps, shards or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddp_bp.data.augment import Augment
from ddp_bp.data.check import check_arrays, check_finite, check_labels, count_classes, task_of
from ddp_bp.data.convert import Conversion, conversion_of
from ddp_bp.data.dataset import Dataset
from ddp_bp.data.order import SPLIT, random_order
from ddp_bp.data.read import read_parts
from ddp_bp.data.source import Source
from ddp_bp.data.spec import DataSpec, Task
from ddp_bp.errors import DataError


@dataclass(frozen=True)
class Loaded:
    """Data ready to train on.

    `num_outputs` is what a model must give for each sample: the number of classes, or the number of target values K.
    `num_classes` is None for regression; `evaluation` is None when nothing is held out. `input_shape` is the shape of
    one input. `augment` says how `Batches` shall vary the training samples; normalizing is done by the data sets.
    `vocabulary` is None except for text, where inputs and targets are places in it and each position of a target is an
    answer of its own. `description` is one line for people. `conversion` is what was done to the values of the files;
    None if there are none.
    """

    train: Dataset
    evaluation: Dataset | None
    task: Task
    num_classes: int | None
    num_outputs: int
    input_shape: tuple[int, ...]
    augment: Augment
    vocabulary: str | None
    description: str
    conversion: Conversion | None = None


def load(spec: DataSpec, base: Path = Path(), *, cache: Path | None = None, check: bool = True) -> Loaded:
    """Loads what `spec` describes; its relative paths are resolved against the folder `base`.

    Public sets of images are looked for in `cache`, the user's cache folder, and in the system's folder of data sets.

    With `check`, every input and target is looked at. Without it the scan for NaN and infinity is left out, for a
    process whose parent has already done it; labels are always checked. The result is the same bits in every process.

    Raises DataError, naming file, row and column, for anything that cannot be trained on.
    """
    problems = spec.problems()
    if problems:
        raise DataError("the data settings cannot be used: " + "; ".join(problems))
    parts = read_parts(spec, base, cache, check=check)
    source, eval_source = parts.train, parts.evaluation
    check_arrays(source)
    task = task_of(source, spec.task, spec.num_classes or parts.num_classes)
    num_classes = None
    if task == "classification":
        num_classes = spec.num_classes or parts.num_classes or count_classes(source)
    _check_values(source, num_classes, check)
    train_rows = eval_rows = None
    if eval_source is not None:
        check_arrays(eval_source)
        _check_same_layout(source, eval_source)
        _check_values(eval_source, num_classes, check)
    elif not parts.is_divided:
        train_rows, eval_rows = split_rows(len(source.inputs), spec.held_out_fraction, spec.seed)
        eval_source = source if eval_rows is not None else None
    conversion = conversion_of(spec, source, train_rows, task)
    train = conversion.dataset(source, train_rows)
    evaluation = None if eval_source is None else conversion.dataset(eval_source, eval_rows)
    num_outputs = num_classes or int(np.prod(source.targets.shape[1:]))
    return Loaded(
        train=train,
        evaluation=evaluation,
        task=task,
        num_classes=num_classes,
        num_outputs=num_outputs,
        input_shape=train.input_shape,
        augment=spec.augment,
        vocabulary=source.vocabulary,
        description=_describe(spec.name or source.input_file, train, evaluation, num_classes, num_outputs),
        conversion=conversion,
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


def _check_values(source: Source, num_classes: int | None, check: bool) -> None:
    if source.vocabulary is not None:
        return
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


def _describe(
    called: str, train: Dataset, evaluation: Dataset | None, num_classes: int | None, num_outputs: int
) -> str:
    held_out = "none held out" if evaluation is None else f"{evaluation.num_samples} held out for evaluation"
    size = " x ".join(map(str, train.input_shape))
    goal = f"{num_outputs} target values" if num_classes is None else f"{num_classes} classes"
    return f"{called}: {train.num_samples} samples to train on, {held_out}; inputs of {size} values, {goal}"
