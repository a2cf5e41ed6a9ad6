"""Reads IDX files of bytes, the format of MNIST and of the data sets made in its image.

Two bytes of zero, a byte for the type of the values, a byte for the number of axes, the length of each axis as a
big-endian 32-bit integer, then the values in C order [LeCun, Cortes and Burges, "The MNIST database of handwritten
digits"]. This module must not know what the values mean.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ddp_bp.data.compressed import unpacked
from ddp_bp.errors import DataError

_UNSIGNED_BYTES: Final = 0x08


def read_idx(path: Path, num_axes: int) -> NDArray[np.uint8]:
    """The array of an IDX file, plain or compressed with gzip, of unsigned bytes with `num_axes` axes. Read-only.

    Raises DataError naming the file, what was expected and what was got; OSError if it cannot be opened.
    """
    content = unpacked(path.read_bytes(), str(path))
    expected = bytes([0, 0, _UNSIGNED_BYTES, num_axes])
    if content[:4] != expected:
        raise DataError(
            f"{path} is not an IDX file of bytes with {num_axes} axes: expected it to start with {expected.hex(' ')}, "
            f"got {content[:4].hex(' ') or 'an empty file'}"
        )
    start = 4 + 4 * num_axes
    if len(content) < start:
        raise DataError(f"{path} is cut: its header has {start} bytes, got {len(content)}")
    shape = struct.unpack(f">{num_axes}I", content[4:start])
    if len(content) - start != prod(shape):
        wrong = "is cut" if len(content) - start < prod(shape) else "is too long"
        raise DataError(
            f"{path} {wrong}: expected {prod(shape)} values, as its header says ({' x '.join(map(str, shape))}), "
            f"got {len(content) - start}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
