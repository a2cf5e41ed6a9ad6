"""Reads a table of numbers from a CSV file, and says exactly where it is not one.

NumPy's parser reads good files fast. Only a file that it refuses is read again, line by line, to name the line, the
column and the offending text. This module must not know which column is the target for what purpose.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddp_bp.data.source import Source, suggestion
from ddp_bp.errors import DataError

_DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class _Layout:
    """How a file is written: its delimiter, its column names if it has a header, and where its data starts."""

    delimiter: str
    names: tuple[str, ...] | None
    num_columns: int
    num_header_lines: int

    def column(self, index: int) -> str:
        return f"column {index}" if self.names is None else f"column {index} ({self.names[index]!r})"


def read_csv(path: Path, target: str | None, *, check: bool = True) -> Source:
    """Inputs (N, C - 1) and targets (N,), both float64, of a CSV file with C columns.

    `target` is the name or the number of the target column, by default the last one. The delimiter (comma, semicolon
    or tab) and the header (a first line of text over numbers) are detected. Fields may be quoted; blank lines, a byte
    order mark and any line ends are fine. With `check`, NaN and infinity are refused as well.

    Raises DataError naming the line (counted from 1), the column (counted from 0) and the text.
    """
    try:
        layout = _layout_of(path)
        table = _parse(path, layout, check)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} in byte {error.start}): save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path} is not a readable CSV file: {error}") from error
    column = _target_column(path, layout, target)
    names = None if layout.names is None else tuple(np.delete(layout.names, column).tolist())
    return Source(
        inputs=np.delete(table, column, axis=1),
        targets=table[:, column].copy(),
        input_file=str(path),
        target_file=f"{layout.column(column)} of {path}",
        where=lambda row: f"line {_line_of_row(path, layout, row)}",
        columns=names,
        is_text=True,
    )


def _rows(path: Path, delimiter: str, skip_lines: int = 0) -> Iterator[tuple[int, list[str]]]:
    """(line number from 1, fields) of each line that is not blank, after the first `skip_lines` lines."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        for fields in reader:
            if reader.line_num > skip_lines and any(field.strip() for field in fields):
                yield reader.line_num, fields


def _layout_of(path: Path) -> _Layout:
    delimiter = _delimiter_of(path)
    rows = _rows(path, delimiter)
    line, first = next(rows, (0, []))
    if not first:
        raise DataError(f"{path} has no samples: the file is empty")
    second = next(rows, None)
    is_header = _is_header(first, second[1] if second else None)
    if is_header and second is None:
        raise DataError(f"{path} has no samples: there is no line after the header")
    if len(first) < 2:
        raise DataError(
            f"{path}, line {line}: at least two columns are needed, inputs and a target, got 1; "
            f"columns are separated by a comma, a semicolon or a tab"
        )
    names = tuple(name.strip() for name in first) if is_header else None
    return _Layout(delimiter, names, len(first), num_header_lines=line if is_header else 0)


def _delimiter_of(path: Path) -> str:
    """The delimiter that cuts the first line that is not blank into the most fields; the comma if none cuts it."""
    return max(_DELIMITERS, key=lambda delimiter: len(next(_rows(path, delimiter), (0, []))[1]))


def _is_header(first: list[str], second: list[str] | None) -> bool:
    """Whether the first line names the columns rather than being a sample.

    Text over a number is a name. Text over text is a name only if no field of the first line is a number; otherwise it
    is a column of text, and the error message is better if the first line counts as a sample.
    """
    text = [index for index, field in enumerate(first) if _number(field) is None]
    if len(text) == len(first):
        return True
    return second is not None and any(index < len(second) and _number(second[index]) is not None for index in text)


def _number(field: str) -> float | None:
    # Python reads 1_000 as a number; no other program that writes CSV files means that.
    if "_" in field:
        return None
    try:
        return float(field)
    except ValueError:
        return None


def _parse(path: Path, layout: _Layout, check: bool) -> NDArray[np.float64]:
    try:
        table = np.loadtxt(
            path,
            dtype=np.float64,
            comments=None,
            delimiter=layout.delimiter,
            skiprows=layout.num_header_lines,
            quotechar='"',
            encoding="utf-8-sig",
            ndmin=2,
        )
    except UnicodeDecodeError:
        raise
    except ValueError:
        return _parse_line_by_line(path, layout, check)
    if table.shape[1] != layout.num_columns or (check and not np.isfinite(table).all()):
        return _parse_line_by_line(path, layout, check)
    return table


def _parse_line_by_line(path: Path, layout: _Layout, check: bool) -> NDArray[np.float64]:
    numbers = array("d")
    for line, fields in _rows(path, layout.delimiter, layout.num_header_lines):
        if len(fields) != layout.num_columns:
            raise DataError(
                f"{path}, line {line}: expected {layout.num_columns} columns as in the first line, got {len(fields)}"
            )
        for index, field in enumerate(fields):
            number = _number(field)
            if number is None or (check and not math.isfinite(number)):
                raise DataError(f"{path}, line {line}, {layout.column(index)}: {_complaint(field, number)}")
            numbers.append(number)
    return np.array(numbers).reshape(-1, layout.num_columns)


def _complaint(field: str, number: float | None) -> str:
    if number is not None:
        return f"{field.strip()!r} is not a finite number; remove the line or fill in a value"
    if not field.strip():
        return "the field is empty; remove the line or fill in a value"
    if _number(field.replace(",", ".")) is not None:
        return f"{field!r} is not a number; write it with a decimal point"
    return (
        f"{field!r} is not a number; every column must be numeric, so remove the column or encode its text as numbers"
    )


def _target_column(path: Path, layout: _Layout, target: str | None) -> int:
    if target is None:
        return layout.num_columns - 1
    if layout.names is not None and target in layout.names:
        if layout.names.count(target) > 1:
            raise DataError(f"{path}: several columns are named {target!r}; give the target column by its number")
        return layout.names.index(target)
    try:
        index = int(target)
    except ValueError:
        if layout.names is None:
            raise DataError(
                f"{path} has no header, so there is no target column {target!r}; give its number, "
                f"0 to {layout.num_columns - 1}"
            ) from None
        raise DataError(
            f"{path} has no target column {target!r}; it has {', '.join(map(repr, layout.names))}"
            f"{suggestion(target, layout.names)}"
        ) from None
    if not -layout.num_columns <= index < layout.num_columns:
        raise DataError(
            f"{path} has {layout.num_columns} columns, numbered 0 to {layout.num_columns - 1}: "
            f"there is no target column {index}"
        )
    return index % layout.num_columns


def _line_of_row(path: Path, layout: _Layout, row: int) -> int:
    for index, (line, _) in enumerate(_rows(path, layout.delimiter, layout.num_header_lines)):
        if index == row:
            return line
    raise DataError(f"{path} changed while it was being read")
