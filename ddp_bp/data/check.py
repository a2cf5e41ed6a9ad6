"""Finds the values in a source that cannot be trained on, and decides what its targets are.

Arrays are looked at chunk by chunk, so that a memory-mapped file of any size can be checked. This module must not know
file formats, nor how samples are divided.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ddp_bp.data.dataset import chunks
from ddp_bp.data.source import Source
from ddp_bp.data.spec import Task
from ddp_bp.errors import DataError


def check_arrays(source: Source) -> None:
    """Shapes and dtypes: real numbers, at least one sample, as many targets as inputs. Raises DataError."""
    for array, called in ((source.inputs, source.input_file), (source.targets, source.target_file)):
        if array.dtype.kind not in "biuf":
            raise DataError(f"{called} must hold real numbers, got dtype {array.dtype}")
        if array.ndim == 0:
            raise DataError(f"{called} must have one row for each sample, got a single value")
        if len(array) == 0:
            raise DataError(f"{called} has no samples: its shape is {array.shape}")
        if array.size == 0:
            raise DataError(f"{called} has no values for its samples: its shape is {array.shape}")
    if len(source.inputs) != len(source.targets):
        raise DataError(
            f"every input needs one target: {source.input_file} has {len(source.inputs)} rows, "
            f"{source.target_file} has {len(source.targets)}"
        )
    if source.targets.ndim > 2:
        raise DataError(f"{source.target_file} must have shape (N,) or (N, K), got {source.targets.shape}")


def check_finite(array: NDArray[Any], called: str, source: Source) -> None:
    """Raises DataError naming the first value of `array` that is not finite as a float32."""
    if array.dtype.kind != "f":
        return
    for first_row, chunk in chunks(array):
        with np.errstate(over="ignore"):
            finite = np.isfinite(chunk.astype(np.float32, copy=False))
        if finite.all():
            continue
        position = tuple(int(index) for index in np.argwhere(~finite)[0])
        value = float(chunk[position])
        what = "is beyond the range of float32" if np.isfinite(value) else "is not a finite number"
        raise DataError(
            f"{called}, {source.where(first_row + position[0])}{_column(source, array, position[1:])}: {value} {what}; "
            f"remove the sample or correct the value"
        )


def task_of(source: Source, task: Literal["auto", "classification", "regression"], num_classes: int | None) -> Task:
    """What the targets are for. See `DataSpec.task` for the meaning of "auto"."""
    if task != "auto":
        return task
    if num_classes is not None:
        return "classification"
    if source.targets.ndim > 1 and source.targets.shape[1] > 1:
        return "regression"
    if source.targets.dtype.kind in "biu" or (source.is_text and bool((source.targets % 1 == 0).all())):
        return "classification"
    return "regression"


def count_classes(source: Source) -> int:
    """One more than the highest label, for a user who did not say how many classes there are. Raises DataError."""
    highest = check_labels(source, None)
    if highest >= len(source.targets):
        raise DataError(
            f"{source.target_file} has whole numbers up to {highest} for {len(source.targets)} samples, which does not "
            f"look like classes: set `task` to regression, or set `num_classes`"
        )
    if highest == 0:
        raise DataError(f"{source.target_file} has the same label 0 for every sample: there is nothing to classify")
    return highest + 1


def check_labels(source: Source, num_classes: int | None) -> int:
    """The highest label of the targets, checked to be whole numbers in [0, num_classes).

    Without `num_classes` any whole number from 0 will do. Raises DataError naming the row.
    """
    targets = source.targets
    if targets.ndim > 1 and targets.shape[1] != 1:
        raise DataError(f"{source.target_file} must have one label for each sample, got shape {targets.shape}")
    highest = 0
    for first_row, chunk in chunks(targets.reshape(-1)):
        # The remainder of an infinity is NaN, and so counts as wrong too.
        with np.errstate(invalid="ignore"):
            wrong = (chunk % 1 != 0) | (chunk < 0)
        if num_classes is not None:
            wrong |= chunk > num_classes - 1
        if wrong.any():
            row = int(np.argmax(wrong))
            wanted, advice = "a whole number from 0", "set `task` to regression if these are not classes"
            if num_classes is not None:
                wanted, advice = f"{wanted} to {num_classes - 1}", "correct the label or raise `num_classes`"
            raise DataError(
                f"{source.target_file}, {source.where(first_row + row)}: expected {wanted} as label, "
                f"got {chunk[row]}; {advice}"
            )
        highest = max(highest, int(chunk.max()))
    return highest


def _column(source: Source, array: NDArray[Any], position: tuple[int, ...]) -> str:
    if not position:
        return ""
    if array is source.inputs and source.columns is not None:
        return f", column {source.columns[position[0]]!r}"
    return f", column {position[0] if len(position) == 1 else position}"
