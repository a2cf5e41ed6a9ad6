"""Brings one file from a web address to the disk, however often the connection breaks.

What has arrived stays in a file beside the target, and the next try asks for the rest only (HTTP Range [RFC 9110,
section 14]). This module must not know what the file holds.
"""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ddp_bp._version import __version__
from ddp_bp.errors import DataError, DownloadError

NUM_TRIES: Final = 4
"""How often in a row a transfer may fail without a single byte more."""
FIRST_WAIT_SECONDS: Final = 1.0
"""Before the second try; doubled before each further one."""
TIMEOUT_SECONDS: Final = 30.0
"""How long the server may be silent."""

_CHUNK_BYTES: Final = 256 * 2**10
# Answers that may be another one later: request timeout, too many requests, and the server's own trouble.
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_RANGE_NOT_SATISFIABLE: Final = 416

Progress = Callable[[int, int | None], None]
"""Told the bytes that are here, and the bytes of the whole file where the server says it."""
Retrying = Callable[[str, float], None]
"""Told what went wrong, and after how many seconds there is another try."""


def download(
    address: str,
    part: Path,
    progress: Progress,
    retrying: Retrying,
    *,
    sleep: Callable[[float], None] = time.sleep,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> None:
    """Bring all of the file at `address` to `part`, going on where `part` ends.

    Raises:
        DownloadError: the server refuses, or cannot be reached in NUM_TRIES tries. What has arrived stays in `part`.
        DataError: `part` cannot be written.
    """
    num_failures = 0
    while True:
        num_bytes_before = _size(part)
        try:
            if _transfer(address, part, progress, timeout_seconds):
                return
            problem = "the connection was cut"
        except urllib.error.HTTPError as error:
            problem = f"the server answered {error.code} {error.reason}"
            if error.code not in _PASSING:
                raise DownloadError(f"{address}: {problem}") from error
        except (OSError, http.client.HTTPException) as error:
            problem = _reason(error)
        num_failures = 1 if _size(part) > num_bytes_before else num_failures + 1
        if num_failures >= NUM_TRIES:
            raise DownloadError(f"{address}: {problem}, {num_failures} times in a row")
        wait_seconds = FIRST_WAIT_SECONDS * 2 ** (num_failures - 1)
        retrying(problem, wait_seconds)
        sleep(wait_seconds)


def _transfer(address: str, part: Path, progress: Progress, timeout_seconds: float) -> bool:
    """One request, its answer added to `part`. Returns whether the file is whole, as far as the server says."""
    num_bytes = _size(part)
    # A server that compressed the file once more would count other bytes than those that arrive here.
    headers = {"User-Agent": f"ddp_bp/{__version__}", "Accept-Encoding": "identity"}
    if num_bytes:
        headers["Range"] = f"bytes={num_bytes}-"
    try:
        answer = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=timeout_seconds)
    except urllib.error.HTTPError as error:
        if error.code != _RANGE_NOT_SATISFIABLE or not num_bytes:
            raise
        # Nothing comes after what is here. Either that is the whole file, or it is not the beginning of this one.
        if _content_range(error.headers)[1] == num_bytes:
            return True
        _write(part, b"", append=False)
        return False
    with answer:
        start, total = _content_range(answer.headers)
        if answer.status != 206 or start is None:
            start, total = 0, _number(answer.headers.get("Content-Length"))
        if start != num_bytes:
            # The server has sent another range than that asked for; if it ignored the wish, it is the whole file.
            if start != 0:
                _write(part, b"", append=False)
                return False
            num_bytes = 0
        return _receive(answer, part, num_bytes, total, progress)


def _receive(answer: Any, part: Path, num_bytes: int, total: int | None, progress: Progress) -> bool:
    _write(part, b"", append=num_bytes > 0)
    progress(num_bytes, total)
    while chunk := answer.read(_CHUNK_BYTES):
        _write(part, chunk, append=True)
        num_bytes += len(chunk)
        progress(num_bytes, total)
    return total is None or num_bytes == total


def _content_range(headers: Any) -> tuple[int | None, int | None]:
    """(first byte, size of the whole file) of a Content-Range header; None for what it does not say."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", "").strip())
    return (None, None) if match is None else (_number(match[1]), _number(match[2]))


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _write(part: Path, content: bytes, *, append: bool) -> None:
    # The errors of the disk are told apart here: those of the network are OSError too.
    try:
        with part.open("ab" if append else "wb") as file:
            file.write(content)
    except OSError as error:
        raise DataError(f"{part} cannot be written: {error.strerror or error}") from error


def _size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, Exception) else error
    if isinstance(error, TimeoutError):
        return "the server was silent for too long"
    if isinstance(error, http.client.IncompleteRead | ConnectionResetError):
        return "the connection was cut"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
