"""Digests: against plain integers, and that any change within eight bytes shows."""

from __future__ import annotations

import functools
import math
import operator
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_bp.worker.digest import checksum, full_digest, result_digest


def by_hand(content: bytes) -> int:
    blocks = [content[start : start + 4096] for start in range(0, len(content) - len(content) % 4096, 4096)]
    blocks.append(content[len(content) - len(content) % 4096 :].ljust(4096, b"\0"))
    total = 0
    for number, block in enumerate(blocks):
        words = sum(int.from_bytes(block[start : start + 8], "little") for start in range(0, 4096, 8))
        total += words * (2 * number + 1) * 0x9E3779B97F4A7C15
    return total % 2**64


@pytest.mark.parametrize("size", [0, 1, 7, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, bool])
def test_a_checksum_is_the_sum_of_words_by_hand(size: int, dtype: type) -> None:
    array = np.random.default_rng(size).integers(0, 2, size).astype(dtype) * dtype(1)
    assert checksum(array) == by_hand(array.tobytes())
    assert checksum(array[1:].copy()) == by_hand(array[1:].tobytes())


@settings(max_examples=60)
@given(size=st.integers(1, 3000), data=st.data())
def test_any_change_of_a_word_changes_it(size: int, data: st.DataObject) -> None:
    array = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    before, index = checksum(array), data.draw(st.integers(0, size - 1))
    array.view(np.uint32)[index] ^= np.uint32(data.draw(st.integers(1, 2**32 - 1)))
    assert checksum(array) != before


def test_a_result_is_made_of_the_bits_of_two_numbers_and_knows_one_nan() -> None:
    first = int.from_bytes(struct.pack(">d", 1.5))
    second = int.from_bytes(struct.pack(">d", 0.1)[4:] + struct.pack(">d", 0.1)[:4])
    assert result_digest(1.5, 0.1) == (first * 0x9E3779B97F4A7C15 + second) % 2**64
    assert len({result_digest(*numbers) for numbers in ((1.5, 0.1), (0.1, 1.5), (1.5, 0.1 + 2**-55), (-1.5, 0.1))}) == 4
    other_nan = struct.unpack("<d", b"\1\0\0\0\0\0\xf8\xff")[0]
    assert math.isnan(other_nan)
    assert result_digest(other_nan, 1.0) == result_digest(math.nan, 1.0) != result_digest(1.0, math.nan)


def test_results_of_single_precision_fill_all_bits() -> None:
    numbers = np.random.default_rng(0).standard_normal((200, 2)).astype(np.float32).tolist()
    seen = [result_digest(*pair) for pair in numbers]
    assert functools.reduce(operator.or_, seen) == 2**64 - 1
    assert functools.reduce(operator.and_, seen) == 0


def test_everything_that_a_shard_gives_is_in_its_full_digest() -> None:
    vector = np.ones(5, np.float32)
    digests = [
        full_digest(*sums, vector) for sums in ((1.0, 2.0, 3.0), (1.5, 2.0, 3.0), (1.0, 2.5, 3.0), (1.0, 2.0, 4))
    ]
    vector[4] = np.nextafter(np.float32(1), np.float32(2))
    digests.append(full_digest(1.0, 2.0, 3.0, vector))
    assert len(set(digests)) == 5
