"""Reads NumPy's own files: `.npz` into memory, `.npy` as a memory map. Nothing is ever unpickled.

It must not know what the arrays mean; their values are checked elsewhere.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ddp_bp.data.source import Source, suggestion
from ddp_bp.errors import DataError

_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def read_npz(path: Path, inputs: str, targets: str) -> Source:
    """The arrays named `inputs` and `targets` of a `.npz` file. Raises DataError naming file and array."""
    with path.open("rb") as file:
        arrays = open_npz(file, str(path), (inputs, targets))
    return Source(arrays[0], arrays[1], f"array {inputs!r} of {path}", f"array {targets!r} of {path}")


def open_npz(file: IO[bytes], called: str, names: tuple[str, ...]) -> list[NDArray[Any]]:
    """The named arrays of an open `.npz` file that messages call `called`. Raises DataError."""
    try:
        archive = np.load(file, allow_pickle=False)
    except _UNREADABLE as error:
        raise DataError(f"{called} is not a readable .npz file: {_reason(error)}") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"{called} holds a single array, as .npy files do; a .npz file with {names} was expected")
    with archive:
        for name in names:
            if name not in archive.files:
                raise DataError(
                    f"{called} has no array {name!r}; it has {', '.join(map(repr, archive.files)) or 'none'}"
                    f"{suggestion(name, archive.files)}"
                )
        return [_member(archive, name, called) for name in names]


def map_npy(path: Path, target_path: Path) -> Source:
    """Inputs and targets of two `.npy` files, memory-mapped read-only. Raises DataError naming the file."""
    inputs, targets = _map(path), _map(target_path)
    return Source(inputs, targets, str(path), str(target_path), converts_late=True)


def _map(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        raise DataError(f"{path} is not a readable .npy file: {_reason(error)}") from error
    if isinstance(array, np.lib.npyio.NpzFile):
        array.close()
        raise DataError(f"{path} holds several arrays, as .npz files do: rename it to .npz")
    return array


def _member(archive: np.lib.npyio.NpzFile, name: str, called: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = archive[name]
    except _UNREADABLE as error:
        raise DataError(f"array {name!r} of {called} cannot be read: {_reason(error)}") from error
    return array


def _reason(error: Exception) -> str:
    text = str(error)
    if "allow_pickle" in text or "Python objects" in text or "pickled" in text:
        return "it holds Python objects, or is not a NumPy file; save arrays of plain numbers (numpy.save) instead"
    return text or type(error).__name__
