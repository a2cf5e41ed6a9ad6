"""Finds out which of the formats a `DataSpec` means, and reads it.

It must not know what is done with what it read, nor how a format is laid out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from ddp_bp.data.arrays import map_npy, read_npz
from ddp_bp.data.compressed import unpacked
from ddp_bp.data.csv_file import read_csv
from ddp_bp.data.packaged_sets import packaged_text, read_packaged
from ddp_bp.data.public_sets import read_public
from ddp_bp.data.source import Parts, Source, suggestion
from ddp_bp.data.spec import TEXT_SUFFIX, DataSpec
from ddp_bp.data.text import decode_utf8, divide_text, pair_texts
from ddp_bp.errors import DataError

_ARRAY_SUFFIXES: Final = (".npz", ".npy", ".csv")
_SUFFIXES: Final = (*_ARRAY_SUFFIXES, TEXT_SUFFIX)


def read_parts(spec: DataSpec, base: Path, cache: Path | None, *, check: bool) -> Parts:
    """What `spec`, which has no problems of its own, describes; arguments as for `load`. Raises DataError."""
    try:
        return _read(spec, base, cache, check)
    except OSError as error:
        called = error.filename or spec.path or spec.folder or spec.name
        raise DataError(f"{called} cannot be read: {error.strerror or error}") from error


def _read(spec: DataSpec, base: Path, cache: Path | None, check: bool) -> Parts:
    match spec.kind:
        case "packaged arrays":
            return Parts(read_packaged(spec.name or ""))
        case "images":
            folder = None if spec.folder is None else base / Path(spec.folder).expanduser()
            return read_public(spec.name or "", folder, cache)
        case "packaged text":
            name = spec.name or ""
            return divide_text(decode_utf8(packaged_text(name), name), name, spec.window, spec.held_out_fraction)
        case "text file":
            return _read_text_file(spec, base)
        case "file":
            train = _read_file(spec, spec.path or "", base, check)
            if spec.eval_path is None:
                return Parts(train)
            held_out = replace(spec, path=spec.eval_path, target_path=spec.eval_target_path)
            return Parts(train, _read_file(held_out, spec.eval_path, base, check), is_divided=True)


def _read_text_file(spec: DataSpec, base: Path) -> Parts:
    path = _existing(base, spec.path or "")
    text = _text_of(path)
    if spec.eval_path is None:
        return divide_text(text, str(path), spec.window, spec.held_out_fraction)
    eval_path = _existing(base, spec.eval_path)
    if eval_path.suffix.lower() != TEXT_SUFFIX:
        raise DataError(f"{eval_path}: the evaluation samples of the text {path} must be a {TEXT_SUFFIX} file as well")
    return pair_texts(text, str(path), _text_of(eval_path), str(eval_path), spec.window)


def _text_of(path: Path) -> str:
    return decode_utf8(unpacked(path.read_bytes(), str(path)), str(path))


def _read_file(spec: DataSpec, written: str, base: Path, check: bool) -> Source:
    path = _existing(base, written)
    suffix = path.suffix.lower()
    if suffix not in _ARRAY_SUFFIXES:
        # A text is read elsewhere, unless it was given to evaluate on after training on arrays.
        expected = ", ".join(_ARRAY_SUFFIXES if suffix == TEXT_SUFFIX else _SUFFIXES)
        raise DataError(f"{path}: expected a file that ends in {expected}, got {suffix or 'no suffix'!r}")
    if suffix != ".npy" and spec.target_path is not None:
        raise DataError(f"{path} holds its own targets: a file of targets ({spec.target_path}) is only for .npy files")
    if suffix != ".npz" and spec.inputs != "x":
        raise DataError(f"`inputs` ({spec.inputs!r}) names an array of a .npz file, but the data is {path}")
    if suffix == ".npz":
        return read_npz(path, spec.inputs, spec.target or "y")
    if suffix == ".csv":
        return read_csv(path, spec.target, check=check)
    if spec.target is not None:
        raise DataError(f"`target` ({spec.target!r}) names an array or a column, but {path} has neither: remove it")
    if spec.target_path is None:
        raise DataError(f"{path} holds inputs only: name the .npy file of its targets as well")
    target_path = _existing(base, spec.target_path)
    if target_path.suffix.lower() != ".npy":
        raise DataError(f"{target_path}: the targets of {path} must be a .npy file as well")
    return map_npy(path, target_path)


def _existing(base: Path, written: str) -> Path:
    path = base / Path(written).expanduser()
    if path.is_file():
        return path
    if path.exists():
        raise DataError(f"{path} is not a file: name a file that ends in {', '.join(_SUFFIXES)}")
    if not path.parent.is_dir():
        raise DataError(f"there is no data file {path}; there is no folder {path.parent}")
    siblings = [entry.name for entry in path.parent.iterdir()]
    raise DataError(f"there is no data file {path}{suggestion(path.name, siblings)}")
