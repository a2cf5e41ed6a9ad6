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
    is_mapped: the arrays are memory-mapped files, which must not be read whole into memory.
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]
    input_file: str
    target_file: str
    where: Callable[[int], str] = row_of_array
    columns: tuple[str, ...] | None = None
    is_text: bool = False
    is_mapped: bool = False


def suggestion(wanted: str, available: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the available name nearest to the wanted one, else an empty string."""
    nearest = difflib.get_close_matches(wanted, list(available), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
