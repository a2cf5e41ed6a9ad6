"""Reads one checkpoint folder, whole or not at all.

It must not know about other checkpoints, nor how a checkpoint is written.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ddp_bp.checkpoint.format import (
    MANIFEST_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    TENSOR_FILES,
    Manifest,
    decode_manifest,
    decode_tensors,
    weights_sha256,
)
from ddp_bp.checkpoint.storage import PosixStorage, Storage
from ddp_bp.errors import CheckpointError


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose digests were all correct. The arrays may be read-only."""

    manifest: Manifest
    model: dict[str, NDArray[Any]]
    optimizer: dict[str, NDArray[Any]]
    path: Path


def load_checkpoint(path: Path, storage: Storage | None = None) -> Checkpoint:
    """Loads the checkpoint in the folder `path`. Digests are those of the very bytes that become arrays.

    Raises CheckpointError, naming the file, what was expected and what was got, if anything is missing or damaged.
    """
    storage = storage or PosixStorage()
    manifest = read_manifest(path, storage)
    model = _read_tensors(path, MODEL_FILE, manifest, storage)
    optimizer = _read_tensors(path, OPTIMIZER_FILE, manifest, storage)
    _check_weights(path, manifest, model)
    return Checkpoint(manifest, model, optimizer, path)


def verify_checkpoint(path: Path, storage: Storage | None = None) -> list[str]:
    """Every problem of the checkpoint in the folder `path`, one line each; empty if it can be loaded."""
    storage = storage or PosixStorage()
    try:
        manifest = read_manifest(path, storage)
    except CheckpointError as error:
        return [str(error)]
    problems = []
    tensors = {}
    for name in TENSOR_FILES:
        try:
            tensors[name] = _read_tensors(path, name, manifest, storage)
        except CheckpointError as error:
            problems.append(str(error))
    if MODEL_FILE in tensors:
        try:
            _check_weights(path, manifest, tensors[MODEL_FILE])
        except CheckpointError as error:
            problems.append(str(error))
    return problems


def read_manifest(path: Path, storage: Storage) -> Manifest:
    """The manifest of the checkpoint in the folder `path`. Raises CheckpointError if it is missing or damaged."""
    try:
        content = storage.read_file(path / MANIFEST_FILE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint: it has no {MANIFEST_FILE}{_advice(path, storage)}"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path / MANIFEST_FILE} cannot be read: {error.strerror}") from error
    return decode_manifest(content, str(path / MANIFEST_FILE))


def _read_tensors(path: Path, name: str, manifest: Manifest, storage: Storage) -> dict[str, NDArray[Any]]:
    try:
        content = storage.read_file(path / name)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path / name} is missing: the checkpoint's {MANIFEST_FILE} lists it") from error
    except OSError as error:
        raise CheckpointError(f"{path / name} cannot be read: {error.strerror}") from error
    return decode_tensors(content, manifest.files[name], str(path / name))


def _check_weights(path: Path, manifest: Manifest, model: dict[str, NDArray[Any]]) -> None:
    got = weights_sha256(model, {*manifest.buffers, *manifest.tied})
    if got != manifest.weights_sha256:
        raise CheckpointError(
            f"{path / MODEL_FILE}: expected weights with SHA-256 {manifest.weights_sha256}, got {got}"
        )


def _advice(path: Path, storage: Storage) -> str:
    """What to name instead, when the user named a file of a checkpoint, a folder of checkpoints or a run directory."""
    if path.name in (MANIFEST_FILE, *TENSOR_FILES):
        return f"; name its folder, {path.parent}"
    for folder in (path, path / "checkpoints"):
        with contextlib.suppress(OSError):  # what cannot be read is no advice
            steps = [name for name in storage.list_folder(folder) if name.startswith("step-")]
            if steps:
                return f"; name one of the checkpoints in it, for example {folder / max(steps)}"
    return "; name a folder such as step-00000042"
