"""Downloads a public data set to a folder: each file from the first address that has it, checked by its digest.

A file gets its name only when it is whole and right, so that a folder never holds a wrong one. What to show of the
progress is left to the caller.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, Protocol, cast

from ddp_bp.data.compressed import DAMAGED, GZIP_MAGIC
from ddp_bp.data.download import download
from ddp_bp.data.public_sets import PublicFile
from ddp_bp.errors import DataError, DownloadError

_CHUNK_BYTES: Final = 2**20


class Watcher(Protocol):
    """Is told how it goes, file by file."""

    def present(self, file: str) -> None:
        """The file is there already, and right."""

    def progress(self, file: str, num_bytes: int, total_bytes: int | None) -> None:
        """So many bytes of it are here, of so many where the server says it."""

    def retrying(self, file: str, problem: str, wait_seconds: float) -> None:
        """Something went wrong that may pass."""

    def done(self, file: str, num_bytes: int) -> None:
        """The file is there and right, and has so many bytes on the disk."""


def fetch(
    files: Sequence[PublicFile],
    addresses: Sequence[str],
    folder: Path,
    watcher: Watcher,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Bring `files`, as `.gz`, from the folders at `addresses` to `folder`; those that are there and right stay.

    What an earlier call left unfinished is gone on with.

    Raises:
        DownloadError: a file cannot be had from any of the addresses, with the reason for each.
        DataError: the folder cannot be written, or another process is fetching to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            for file in files:
                _fetch_file(file, addresses, folder, watcher, sleep)
            _sync(folder)
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be used: {error.strerror or error}") from error


def content_problem(path: Path, file: PublicFile) -> str | None:
    """Why the content of `path`, compressed or not, is not that of `file`; None if it is."""
    sha256, num_bytes = hashlib.sha256(), 0
    try:
        with _open_content(path) as content:
            # Not further than one byte too many, whatever a wrong file would grow to.
            while num_bytes <= file.num_bytes and (chunk := content.read(_CHUNK_BYTES)):
                sha256.update(chunk)
                num_bytes += len(chunk)
    except DAMAGED as error:
        return f"it is a damaged or cut gzip file ({error or type(error).__name__})"
    if num_bytes != file.num_bytes:
        return f"expected {file.num_bytes} bytes of content, got {'more' if num_bytes > file.num_bytes else num_bytes}"
    if sha256.hexdigest() != file.sha256:
        return f"expected content with SHA-256 {file.sha256}, got {sha256.hexdigest()}"
    return None


def _fetch_file(
    file: PublicFile,
    addresses: Sequence[str],
    folder: Path,
    watcher: Watcher,
    sleep: Callable[[float], None],
) -> None:
    name = f"{file.name}.gz"
    target, part = folder / name, folder / f"{name}.part"
    if target.exists() and content_problem(target, file) is None:
        watcher.present(name)
        return
    problems = []
    for address in addresses:
        problem = _try_address(f"{address.rstrip('/')}/{name}", file, part, watcher, sleep)
        if problem is None:
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(target)
            watcher.done(name, target.stat().st_size)
            return
        problems.append(problem)
    raise DownloadError("\n  ".join([f"{name} could not be downloaded to {folder}:", *problems]))


def _try_address(
    address: str, file: PublicFile, part: Path, watcher: Watcher, sleep: Callable[[float], None]
) -> str | None:
    """Bring the file to `part` and check it. Returns what went wrong, None if nothing did."""
    name = f"{file.name}.gz"
    while True:
        was_begun = part.exists() and part.stat().st_size > 0
        try:
            download(
                address,
                part,
                lambda num_bytes, total: watcher.progress(name, num_bytes, total),
                lambda problem, wait_seconds: watcher.retrying(name, problem, wait_seconds),
                sleep=sleep,
            )
        except DownloadError as error:
            return str(error)
        problem = content_problem(part, file)
        if problem is None:
            return None
        part.unlink()
        if not was_begun:
            return f"{address}: {problem}"
        # The beginning may have been that of another file, or of another compression of this one.
        watcher.retrying(name, f"{problem}; from the beginning", 0.0)


def _open_content(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        is_compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    return cast(BinaryIO, gzip.open(path, "rb") if is_compressed else path.open("rb"))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds a lock on `folder`. Raises DataError if another process does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another process is downloading to it; wait until it has finished") from None
        except OSError:
            # A file system without locks. Two downloads at a time then end in a wrong digest, not in a wrong file.
            pass
        yield
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
