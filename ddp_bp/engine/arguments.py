"""What users may write as arguments, turned into what operations take."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddp_bp.engine.ops.operation import Array
from ddp_bp.engine.value import Value
from ddp_bp.errors import DtypeError


def operand(value: object, beside: Array) -> Array:
    """The array of an operand that is no tensor. Numbers take the dtype beside them, unless it would cut them.

    NumPy's are numbers as Python's are, so that dividing by `np.sqrt(4)` makes no float64 of a float32.

    Raises DtypeError for what is neither a number nor an array, and for an integer out of the dtype's range.
    """
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "fiub":
            raise DtypeError(f"an operand of a tensor holds floats, integers or booleans, and not {value.dtype}")
        if isinstance(value, np.ndarray):
            return value
        value = value.item()
    if not isinstance(value, bool | int | float):
        raise DtypeError(
            f"an operand of a tensor is a tensor, a number or a NumPy array, and not {type(value).__name__}; "
            "use tensor() to convert"
        )
    dtype = beside.dtype
    if dtype.kind != "f" and isinstance(value, float):
        dtype = np.dtype(np.float32)
    elif dtype.kind == "b" and not isinstance(value, bool):
        dtype = np.dtype(np.int64)
    try:
        return np.array(value, dtype)
    except OverflowError:
        raise DtypeError(f"{value} does not fit the {dtype} of the tensor beside it") from None


def sizes(given: tuple[int | tuple[int, ...], ...]) -> tuple[int, ...]:
    """Sizes or axes given one by one or as one sequence, as in PyTorch."""
    if len(given) == 1 and isinstance(given[0], tuple | list):
        return tuple(given[0])
    return tuple(given)  # type: ignore[arg-type]


def kept_sizes(given: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """`given` with each -1 replaced by the side of `shape` below it, counted from the last axis."""
    if -1 not in given:
        return given
    num_new = len(given) - len(shape)
    return tuple(shape[axis - num_new] if size == -1 and axis >= num_new else size for axis, size in enumerate(given))


def index(given: object) -> tuple[Any, ...]:
    """An index as a tuple of what NumPy takes. Index arrays are copied, since backward reads them."""
    entries: list[Any] = []
    for entry in given if isinstance(given, tuple) else (given,):
        if isinstance(entry, Value):
            entries.append(entry._array.copy())
        elif isinstance(entry, np.ndarray | list):
            array = np.array(entry)
            entries.append(array if array.size else array.astype(np.intp))
        else:
            entries.append(entry)
    # With an ellipsis NumPy gives a view of a single element, too, instead of a copied scalar.
    if not any(entry is Ellipsis for entry in entries):
        entries.append(Ellipsis)
    return tuple(entries)
