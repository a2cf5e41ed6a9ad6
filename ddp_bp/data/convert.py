"""How the values of a file become what a model is given: shape, scale and dtype.

It must not know file formats, nor how samples are divided.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_bp.data.augment import Normalize
from ddp_bp.data.dataset import Dataset, Standardization, standardization_of
from ddp_bp.data.source import Source
from ddp_bp.data.spec import DataSpec, Task
from ddp_bp.errors import DataError

# More than that takes too much room in every checkpoint.
MAX_DESCRIBED_VALUES = 2**17


@dataclass(frozen=True)
class Conversion:
    """The same for training and evaluation samples: what is measured is measured on the training samples.

    `is_late`: inputs are converted batch by batch, not once; the bits are the same.
    """

    task: Task
    input_shape: tuple[int, ...]
    standardization: Standardization | None
    target_standardization: Standardization | None
    is_late: bool

    def description(self) -> dict[str, Any]:
        """What is done to values, as JSON, for whoever gives a trained model other ones.

        "inputs" and "targets" have "mean" and "deviation", numbers or nested lists that broadcast, of (x - mean) /
        deviation; None: values are taken as they are. Left out where there are more than MAX_DESCRIBED_VALUES of them.
        """
        scalings = {"inputs": self.standardization, "targets": self.target_standardization}
        return {
            "input_shape": list(self.input_shape),
            **{
                name: None if scaling is None else {key: value.tolist() for key, value in vars(scaling).items()}
                for name, scaling in scalings.items()
                if scaling is None or scaling.mean.size <= MAX_DESCRIBED_VALUES
            },
        }

    def dataset(self, source: Source, rows: NDArray[np.int64] | None) -> Dataset:
        """The `rows` of `source`, all of them if None, as a data set."""
        is_text = source.vocabulary is not None
        is_classification = self.task == "classification"
        target_dtype = np.int64 if is_classification else np.float32
        dataset = Dataset(
            source.inputs,
            source.targets.reshape(-1) if is_classification and not is_text else source.targets,
            rows=rows,
            input_shape=self.input_shape,
            standardization=self.standardization,
            target_standardization=self.target_standardization,
            input_dtype=np.int64 if is_text else np.float32,
            target_dtype=target_dtype,
        )
        if self.is_late:
            return dataset
        return Dataset(*dataset.batch(np.arange(dataset.num_samples, dtype=np.int64)), target_dtype=target_dtype)


def conversion_of(spec: DataSpec, source: Source, train_rows: NDArray[np.int64] | None, task: Task) -> Conversion:
    """What `spec` says about the values of `source`, whose training samples are `train_rows`, all of them if None.

    Raises DataError for a shape or an augmentation that does not fit the inputs, or for targets that have no scale.
    """
    input_shape = _input_shape(spec, source)
    spec.augment.check_shape(input_shape)
    standardization = None
    if spec.standardize:
        # Whatever the inputs would be divided by besides makes no difference.
        standardization = standardization_of(source.inputs, train_rows).reshaped(input_shape)
    elif spec.augment.normalize is not None:
        standardization = _channel_by_channel(spec.augment.normalize, source.input_limit)
    elif source.input_limit != 1:
        standardization = Standardization(np.zeros(()), np.full((), float(source.input_limit)))
    target_standardization = None
    if spec.standardize_targets:
        if task == "classification":
            raise DataError(
                f"`standardize_targets` is for regression, but {source.target_file} holds classes: "
                f"remove it, or set `task` to regression"
            )
        target_standardization = standardization_of(source.targets, train_rows)
    return Conversion(
        task=task,
        input_shape=input_shape,
        standardization=standardization,
        target_standardization=target_standardization,
        is_late=source.converts_late or spec.augment.is_random,
    )


def _input_shape(spec: DataSpec, source: Source) -> tuple[int, ...]:
    given = source.inputs.shape[1:] or (1,)
    if spec.input_shape is None:
        return given
    if prod(spec.input_shape) != prod(given):
        raise DataError(
            f"`input_shape` {list(spec.input_shape)} has {prod(spec.input_shape)} values, but the inputs of "
            f"{source.input_file} have {prod(given)}: their shape is {list(given)}"
        )
    return spec.input_shape


def _channel_by_channel(normalize: Normalize, input_limit: int) -> Standardization:
    """Mean and deviation are those of inputs that have been divided by `input_limit`."""
    mean, deviation = (np.array(values)[:, np.newaxis, np.newaxis] for values in (normalize.mean, normalize.std))
    return Standardization(mean * input_limit, deviation * input_limit)
