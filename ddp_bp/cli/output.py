"""What people see: tables and numbers for a terminal, JSON for programs. Decides nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table

# Wide enough that no cell is ever folded where the reader is a file or a program.
_NO_TERMINAL_WIDTH = 10_000


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """Print a table on stdout; a value of None shows as a dash."""
    headers = [Column(name, overflow="fold") for name in columns]
    table = Table(*headers, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    # Cells hold paths and error messages, in which brackets and colons mean nothing but themselves.
    width = None if sys.stdout.isatty() else _NO_TERMINAL_WIDTH
    Console(highlight=False, markup=False, emoji=False, width=width).print(table)


def size_text(num_bytes: int | None) -> str | None:
    """A number of bytes for people: `1.2 MB`."""
    if num_bytes is None:
        return None
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def count_text(count: int) -> str:
    """A large number for people: `1.25 M`."""
    value = float(count)
    for unit in ("", " k", " M", " G"):
        if value < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.4g} T"


def seconds_text(seconds: float | None) -> str | None:
    """A duration for people: `850 us`, `12 ms`, `3.4 s`, `2 min 5 s`."""
    if seconds is None:
        return None
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"
