"""Small files that are either the old ones or the new ones, whole, at any moment.

Knows nothing of what is in them.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Writes a file so that it is durable on return and never seen half written. Raises OSError."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        # Made anew each time, so that `mode` counts from the first moment.
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append(descriptor: int, content: bytes) -> None:
    """Appends to a file that was opened with O_APPEND and has no other writer: everything, or nothing and OSError."""
    size = os.fstat(descriptor).st_size
    try:
        written = 0
        while written < len(content):
            written += os.write(descriptor, content[written:])
    except OSError:
        # Half a line would spoil the next one as well.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def cut_torn_line(descriptor: int) -> int:
    """Cuts a file after its last line end: what follows was cut short by a crash. Returns the size left, in bytes."""
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        begin = max(0, end - 65536)
        line_end = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if line_end >= 0:
            end = begin + line_end + 1
            break
        end = begin
    if end < size:
        os.ftruncate(descriptor, end)
    return end
