"""Filling a file system to the last block, and freeing it again. Only a small one: others may be using it as well."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from ddp_bp.errors import InputError

LIMIT_BYTES = 2 * 10**9
_LARGEST_BYTES, _SMALLEST_BYTES = 2**30, 2**9


def check_may_fill(folder: Path) -> None:
    """Raise InputError if the file system of `folder`, which need not exist yet, has too much room to be filled."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes > LIMIT_BYTES:
        raise InputError(
            f"--faults fill: expected at most {LIMIT_BYTES / 1e9:g} GB of free space where {folder} is, so that nobody "
            f"else's work is harmed, got {free_bytes / 1e9:.1f} GB; make a small file system for it, for example with "
            "`mount -t tmpfs -o size=300m tmpfs DIR`, or of a file with `mkfs` and `mount -o loop`, and give a folder "
            "in it as --run-dir"
        )


class Filler:
    """A file that takes all the room there is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fill(self) -> int:
        """Take what is left; how many bytes that were."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            size, piece = 0, _LARGEST_BYTES
            while piece >= _SMALLEST_BYTES:
                try:
                    os.posix_fallocate(descriptor, size, piece)
                    size += piece
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                        raise
                    piece //= 2
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def free(self) -> None:
        """Give all of it back."""
        self._path.unlink(missing_ok=True)
