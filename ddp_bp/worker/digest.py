"""Digests of what was computed: one that costs nothing, for every shard of every step, and one of every bit.

They find mistakes of machines, not forgers. Knows nothing of shards or ranks.
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

_BLOCK_BYTES = 4096
_WORDS_PER_BLOCK = _BLOCK_BYTES // 8
# Odd, so that no change of one block's sum is lost in the product: 2^64 over the golden ratio.
_ODD = 0x9E3779B97F4A7C15
_MIXER = np.uint64(_ODD)
_TWO_NUMBERS, _TWO_WORDS = struct.Struct("<2d"), struct.Struct("<2Q")


def result_digest(loss: float, squared_size: float) -> int:
    """Fingerprint, in [0, 2**64), of a shard's loss and of how large its gradient is (`engine.gradient_size`).

    With the bits of both as numbers: loss * 0x9E3779B97F4A7C15 + size with its halves exchanged, modulo 2**64, where
    every NaN counts as the same one. So a change of either alone changes it.
    """
    numbers = [math.nan if math.isnan(number) else number for number in (loss, squared_size)]
    first, second = _TWO_WORDS.unpack(_TWO_NUMBERS.pack(*numbers))
    # Numbers of single precision end with zeros, which must not meet in the same bits.
    return int(first * _ODD + (second >> 32 | second << 32)) % 2**64


def full_digest(loss: float, weight: float, correct: float, vector: npt.NDArray[Any]) -> int:
    """Fingerprint, in [0, 2**64), of everything that a shard gives: its sums, and every bit of its vector."""
    content = struct.pack("<3dQ", loss, weight, correct, checksum(vector))
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")


def checksum(array: npt.NDArray[Any]) -> int:
    """Fingerprint, in [0, 2**64), of every bit of a C-contiguous array; any change within 8 bytes changes it.

    A sum of 64-bit words in each 4 KiB, and of these sums, each times an odd number of its own: it reads the array
    once, at about the speed of memory.
    """
    content = array.reshape(-1).view(np.uint8)
    num_blocks = content.size // _BLOCK_BYTES
    words = content[: num_blocks * _BLOCK_BYTES].view(np.uint64).reshape(num_blocks, _WORDS_PER_BLOCK)
    rest = np.zeros(_BLOCK_BYTES, np.uint8)
    rest[: content.size % _BLOCK_BYTES] = content[num_blocks * _BLOCK_BYTES :]
    sums = np.append(words.sum(axis=1, dtype=np.uint64), rest.view(np.uint64).sum(dtype=np.uint64))
    sums *= np.arange(1, 2 * sums.size, 2, dtype=np.uint64) * _MIXER
    return int(sums.sum(dtype=np.uint64))
