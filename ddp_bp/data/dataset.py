"""A set of samples that can be asked for by number, in memory or in a memory-mapped file.

It must not know which file the arrays came from, nor how samples are divided over steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddp_bp.errors import DataError

CHUNK_BYTES: Final = 8 * 2**20
"""How much of a large array is looked at in one go."""

Variation = Callable[[NDArray[Any]], NDArray[Any]]
"""Gives inputs (n, ...) of any dtype as a new array of the same shape and dtype."""

_DIGEST_LIMIT_BYTES: Final = 64 * 2**20
_DIGEST_NUM_SAMPLES: Final = 1024


@dataclass(frozen=True)
class Standardization:
    """Turns values x into (x - mean) / deviation; both are float64 arrays that broadcast against one input or target.

    For bytes it is computed in float32, else in float64 and then rounded to float32.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    def reshaped(self, shape: tuple[int, ...]) -> Standardization:
        """The same for values that are in another `shape` with as many elements."""
        return Standardization(self.mean.reshape(shape), self.deviation.reshape(shape))


class Dataset:
    """Samples numbered from 0.

    inputs: (N, ...) of any real dtype; an array (N,) counts as (N, 1).
    targets: (N,) or (N, T) for classes; (N,) or (N, K) for regression.
    rows: the rows of both arrays that make up this data set, int64 (num_samples,); default all of them, in order.
    input_shape: the shape that each input is given, with as many elements as it has; default its own.
    standardization, target_standardization: applied to inputs (of `input_shape`) and float32 targets before they are
        rounded to float32.
    input_dtype: float32, or int64 for text; then inputs are not standardized.
    target_dtype: int64 (classes) or float32 (regression); default by the dtype of `targets`.

    Arrays are not copied; a memory-mapped one is read where `batch` touches it. Values are not checked here.
    Raises DataError when the lengths differ.
    """

    def __init__(
        self,
        inputs: NDArray[Any],
        targets: NDArray[Any],
        *,
        rows: NDArray[np.int64] | None = None,
        input_shape: tuple[int, ...] | None = None,
        standardization: Standardization | None = None,
        target_standardization: Standardization | None = None,
        input_dtype: type[np.int64] | type[np.float32] = np.float32,
        target_dtype: type[np.int64] | type[np.float32] | None = None,
    ) -> None:
        if len(inputs) != len(targets):
            raise DataError(f"a data set needs one target for each input, got {len(inputs)} and {len(targets)}")
        if target_dtype is None:
            target_dtype = np.int64 if targets.dtype.kind in "biu" else np.float32
        # Plain arrays even of a memory map, which is still read only where it is touched.
        inputs, targets = np.asarray(inputs), np.asarray(targets)
        self._inputs = inputs.reshape(-1, 1) if inputs.ndim == 1 else inputs
        self._targets = targets.reshape(-1, 1) if targets.ndim == 1 and target_dtype is np.float32 else targets
        self._rows = rows
        self._input_shape = self._inputs.shape[1:] if input_shape is None else input_shape
        self._standardization = standardization
        self._target_standardization = target_standardization
        self._input_dtype = input_dtype
        self._target_dtype = target_dtype

    @property
    def num_samples(self) -> int:
        return len(self._inputs) if self._rows is None else len(self._rows)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, at least one axis."""
        return self._input_shape

    def batch(self, ids: NDArray[np.int64], variation: Variation | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """(inputs, targets) of the samples `ids`, int64 (n,), each in [0, num_samples).

        Inputs are float32 or int64 (n, *input_shape), C-contiguous; targets are int64 (n,), int64 (n, T) or float32
        (n, K). Both are new arrays. `variation` is applied to the inputs as they are stored, before they are scaled.
        """
        rows = ids if self._rows is None else self._rows[ids]
        # Not numpy.take: it first copies all of an array that is in Fortran order, however large.
        raw = self._inputs[rows]
        if raw.shape[1:] != self._input_shape:
            raw = raw.reshape(len(rows), *self._input_shape)
        if variation is not None:
            raw = variation(raw)
        targets = self._targets[rows]
        if self._target_dtype is np.float32:
            targets = to_float32(targets, self._target_standardization)
        else:
            targets = np.ascontiguousarray(targets, dtype=np.int64)
        if self._input_dtype is np.float32:
            return to_float32(raw, self._standardization), targets
        return np.ascontiguousarray(raw, dtype=np.int64), targets

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of shapes, dtypes and samples as `batch` gives them.

        All samples count as long as their inputs take at most 64 MiB as float32; of a larger data set, 1024 evenly
        spaced samples, the first and the last among them. So it is cheap for a file of any size, and tells another
        data set from this one, but it does not prove that a large file is unchanged in every byte.
        """
        sample_bytes = 4 * max(1, int(np.prod(self.input_shape)))
        is_small = self.num_samples * sample_bytes <= _DIGEST_LIMIT_BYTES
        num_seen = self.num_samples if is_small else min(self.num_samples, _DIGEST_NUM_SAMPLES)
        seen = np.arange(num_seen, dtype=np.int64) * (self.num_samples - 1) // max(1, num_seen - 1)
        sha256 = hashlib.sha256()
        sha256.update(
            f"{self.num_samples} {self.input_shape} {self._targets.shape[1:]} {self._target_dtype.__name__}".encode()
        )
        for lo, hi in _ranges(num_seen, sample_bytes):
            inputs, targets = self.batch(seen[lo:hi])
            sha256.update(inputs.astype(inputs.dtype.newbyteorder("<"), copy=False).data)
            sha256.update(targets.astype(targets.dtype.newbyteorder("<"), copy=False).data)
        return sha256.hexdigest()


def to_float32(raw: NDArray[Any], standardization: Standardization | None) -> NDArray[np.float32]:
    """Inputs (n, ...) of any real dtype as C-contiguous float32, standardized if so asked.

    An element's bits do not depend on which elements are converted with it.
    """
    if standardization is None:
        return np.ascontiguousarray(raw, dtype=np.float32)
    # Bytes are whole numbers, which float32 holds exactly, so that their differences need no more.
    values: NDArray[np.floating] = raw.astype(np.float32 if raw.dtype.itemsize == 1 else np.float64, order="C")
    values -= standardization.mean.astype(values.dtype)
    values /= standardization.deviation.astype(values.dtype)
    return values.astype(np.float32, copy=False)


def chunks(array: NDArray[Any], rows: NDArray[np.int64] | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
    """(position of the first row, some consecutive rows) of `array`, or of its `rows`, about CHUNK_BYTES at a time.

    The cuts depend on nothing but shapes and dtype, so sums taken chunk by chunk have the same bits in every process.
    """
    num_rows = len(array) if rows is None else len(rows)
    for lo, hi in _ranges(num_rows, int(np.prod(array.shape[1:])) * array.dtype.itemsize):
        yield lo, np.asarray(array[lo:hi] if rows is None else array[rows[lo:hi]])


def standardization_of(inputs: NDArray[Any], rows: NDArray[np.int64] | None = None) -> Standardization:
    """Mean and population standard deviation of each input value over `inputs` (N, ...), or over its `rows`.

    Two passes in float64: the mean, then the mean squared distance from it. A value that is the same in every sample
    gets that value as its mean and a deviation of 1, so that it becomes exactly 0.
    """
    shape = inputs.shape[1:]
    num_rows = len(inputs) if rows is None else len(rows)
    total = np.zeros(shape)
    lowest = np.full(shape, np.inf)
    highest = np.full(shape, -np.inf)
    for _, chunk in chunks(inputs, rows):
        wide = chunk.astype(np.float64)
        total += wide.sum(axis=0)
        np.minimum(lowest, wide.min(axis=0), out=lowest)
        np.maximum(highest, wide.max(axis=0), out=highest)
    mean = total / num_rows
    squares = np.zeros(shape)
    for _, chunk in chunks(inputs, rows):
        squares += np.square(chunk.astype(np.float64) - mean).sum(axis=0)
    constant = lowest == highest
    return Standardization(np.where(constant, lowest, mean), np.where(constant, 1.0, np.sqrt(squares / num_rows)))


def _ranges(num_rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    step = max(1, CHUNK_BYTES // max(1, row_bytes))
    for lo in range(0, num_rows, step):
        yield lo, min(lo + step, num_rows)
