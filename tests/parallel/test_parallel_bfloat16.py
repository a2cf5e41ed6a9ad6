"""Rounding to bfloat16, against its definition in exact arithmetic and against numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_bp.parallel import bfloat16
from ddp_bp.parallel.bfloat16 import add_rounded, pack, round_to_bfloat16, round_with_feedback, unpack


def float_of(bits: int) -> np.float32:
    return np.array([bits], np.uint32).view(np.float32)[0]


def rounded(value: np.float32) -> np.float32:
    array = np.array([value], np.float32)
    round_to_bfloat16(array)
    return array[0]


def nearest(value: np.float32) -> np.float32:
    """Of the two neighbours among bfloat16, the nearer one, in exact arithmetic; of two as near the even one."""
    bits = int(np.array([value], np.float32).view(np.uint32)[0])
    below, above = bits & 0xFFFF0000, (bits & 0xFFFF0000) + 0x10000
    if below == bits:
        return value
    low = float(float_of(below))
    # Beyond the largest number lies what would be the next power of two.
    high = float(float_of(above)) if abs(float(float_of(above))) != np.inf else np.copysign(2.0**128, low)
    down, up = abs(float(value) - low), abs(high - float(value))
    if down == up:
        return float_of(below if (below >> 16) % 2 == 0 else above)
    return float_of(below if down < up else above)


@given(st.integers(0, 2**32 - 1))
def test_the_nearest_and_of_two_the_even_one(bits: int) -> None:
    value = float_of(bits)
    if np.isnan(value):
        assert np.isnan(rounded(value))
    else:
        assert rounded(value).tobytes() == nearest(value).tobytes()


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x3F808000, 0x3F800000),  # half-way, down to even
        (0x3F818000, 0x3F820000),  # half-way, up to even
        (0x3F808001, 0x3F810000),
        (0x3F807FFF, 0x3F800000),
        (0x00008000, 0x00000000),  # the smallest numbers
        (0x80018000, 0x80020000),
        (0x7F7FFFFF, 0x7F800000),  # too large
        (0xFF800000, 0xFF800000),
    ],
)
def test_by_hand(bits: int, expected: int) -> None:
    assert int(rounded(float_of(bits)).view(np.uint32)) == expected


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7FC00000])
def test_what_is_no_number_stays_so_wherever_it_stands(bits: int) -> None:
    values = np.linspace(-3, 3, 70000, dtype=np.float32)
    expected = values.copy()
    round_to_bfloat16(expected)
    values[[5, 40000]] = float_of(bits)
    round_to_bfloat16(values)
    assert np.flatnonzero(np.isnan(values)).tolist() == [5, 40000]
    others = ~np.isnan(values)
    np.testing.assert_array_equal(values[others], expected[others])


def test_sums_are_rounded_as_far_as_they_are_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16, "_BLOCK_ELEMENTS", 7)
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 40)).astype(np.float32)
    for num_rounded in (-3, 0, 1, 7, 20, 40, 100):
        total, expected = first.copy(), first + second
        add_rounded(total, second, num_rounded)
        round_to_bfloat16(expected[: max(0, num_rounded)])
        np.testing.assert_array_equal(total, expected)


def test_what_rounding_takes_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum of what goes out stays within one rounding of the sum of what came in, however many there are."""
    monkeypatch.setattr(bfloat16, "_BLOCK_ELEMENTS", 7)
    rng = np.random.default_rng(0)
    errors = np.zeros(40, np.float32)
    true, sent = np.zeros(40), np.zeros(40)
    for _ in range(200):
        values = (rng.standard_normal(40) * 1e-3 + 1).astype(np.float32)
        true += values
        left = np.empty_like(errors)
        round_with_feedback(values, errors, left)
        assert not (values.view(np.uint32) & 0xFFFF).any()
        sent += values
        errors = left
    np.testing.assert_allclose(sent + errors, true, rtol=1e-6)
    assert np.abs(errors).max() <= 2**-8


@given(st.integers(0, 50), st.integers(0, 3))
def test_halves_are_all_that_is_needed(size: int, offset: int) -> None:
    values = np.random.default_rng(size).standard_normal(size + offset).astype(np.float32)[offset:]
    round_to_bfloat16(values)
    halves, back = np.empty(size, np.uint16), np.full(size, np.nan, np.float32)
    pack(values, halves)
    unpack(halves, back)
    np.testing.assert_array_equal(back, values)
