"""Bytes that may be compressed with gzip, told by their content, whatever their file is called."""

from __future__ import annotations

import gzip
import zlib
from typing import Final

from ddp_bp.errors import DataError

GZIP_MAGIC: Final = b"\x1f\x8b"
"""The first bytes of a gzip file [RFC 1952, section 2.3.1]."""

DAMAGED: Final = (gzip.BadGzipFile, EOFError, zlib.error)
"""What reading a damaged or cut gzip file raises."""


def unpacked(content: bytes, called: str) -> bytes:
    """`content`, decompressed if it is compressed. Raises DataError naming the file, `called`, if it cannot be."""
    if not content.startswith(GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except DAMAGED as error:
        raise DataError(
            f"{called} is a damaged or cut gzip file ({error or type(error).__name__}): get it once more"
        ) from error
