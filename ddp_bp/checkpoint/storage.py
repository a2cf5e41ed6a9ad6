"""The few file operations that the store is made of, and their implementation on a POSIX file system.

They are kept apart so that a test can fail any one of them, or lose what was not yet on the disk. This module must not
know what a checkpoint is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Storage(Protocol):
    """File operations. All raise OSError, with the path in it, when they fail."""

    def make_folder(self, path: Path) -> None:
        """Makes the folder and its parents, where they are missing. Not durable before `sync_folder(path.parent)`."""

    def write_file(self, path: Path, content: bytes) -> None:
        """Makes a new file; its content is on the disk on return. Its name is not before `sync_folder(path.parent)`."""

    def sync_folder(self, path: Path) -> None:
        """Brings the names in a folder to the disk: what was made, renamed and removed in it."""

    def rename(self, old: Path, new: Path) -> None:
        """Renames a folder; `new` must not exist. Not durable before `sync_folder` of the parent."""

    def remove_tree(self, path: Path) -> None:
        """Removes a folder and all that is in it."""

    def list_folder(self, path: Path) -> Sequence[str]:
        """The names in a folder; none if there is no such folder."""

    def size_bytes(self, path: Path) -> int:
        """Size of a file."""

    def read_file(self, path: Path) -> bytes:
        """The content of a file."""


class PosixStorage:
    """`Storage` on a POSIX file system."""

    def make_folder(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def write_file(self, path: Path, content: bytes) -> None:
        try:
            with path.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # A failed write or fsync does not say which file it was.
            error.filename = error.filename or str(path)
            raise

    def sync_folder(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def remove_tree(self, path: Path) -> None:
        shutil.rmtree(path)

    def list_folder(self, path: Path) -> Sequence[str]:
        return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []

    def size_bytes(self, path: Path) -> int:
        return path.stat().st_size

    def read_file(self, path: Path) -> bytes:
        return path.read_bytes()
