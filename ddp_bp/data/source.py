"""What reading a data file gives, whatever its format: two arrays, and words for pointing at one of their values.

It must not know any file format.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


def row_of_array(row: int) -> str:
    return f"row {row} (counted from 0)"


@dataclass(frozen=True)
class Source:
    """Inputs (N, ...) and targets (N, ...) as they stand in a file, not yet checked or converted.

    input_file, target_file: what to call the two in messages.
    where: turns a row number into words that help to find it in the file.
    columns: names of the input columns, where the file has them.
    is_text: every number was read as a float, so that a dtype says nothing about what the file's author meant.
    input_limit: inputs are divided by this, so that they lie in [0, 1].
    converts_late: inputs become float32 batch by batch, not all at once: they are a memory-mapped file, or bytes, which
        would take four times the memory.
    vocabulary: inputs and targets are text; k stands for the character at place k here.
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]
    input_file: str
    target_file: str
    where: Callable[[int], str] = row_of_array
    columns: tuple[str, ...] | None = None
    is_text: bool = False
    input_limit: int = 1
    converts_late: bool = False
    vocabulary: str | None = None


@dataclass(frozen=True)
class Parts:
    """What reading a whole data set gives.

    `evaluation` is None where there is none, or, unless `is_divided`, where it is still to be split off `train`.
    `num_classes` is None where the data set does not say it.
    """

    train: Source
    evaluation: Source | None = None
    is_divided: bool = False
    num_classes: int | None = None


def suggestion(wanted: str, available: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the available name nearest to the wanted one, else an empty string."""
    nearest = difflib.get_close_matches(wanted, list(available), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
