"""Random streams: the same key gives the same bits anywhere; different keys never overlap."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ddp_bp as ddp
from ddp_bp.engine import generator
from ddp_bp.engine.random import draw_kept
from ddp_bp.errors import InputError

words = st.integers(0, 2**63 - 2)


def draws(seed: int, step: int, shard: int, count: int = 2) -> list[list[float]]:
    with ddp.random_stream(seed, step, shard):
        return [generator().random(4).tolist() for _ in range(count)]


@settings(max_examples=30, deadline=None)
@given(words, words, words)
def test_a_key_gives_the_same_bits_whatever_came_before(seed: int, step: int, shard: int) -> None:
    first = draws(seed, step, shard)
    generator().random(3)
    assert draws(seed, step, shard) == first
    assert first[0] != first[1]


@settings(max_examples=30, deadline=None)
@given(st.tuples(words, words, words), st.tuples(words, words, words))
def test_other_keys_give_other_bits(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    assert (draws(*one) == draws(*other)) == (one == other)


def test_each_part_of_the_key_counts() -> None:
    streams = [draws(*key) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)]]
    assert len({str(stream) for stream in streams}) == len(streams)


def test_how_much_one_draw_takes_does_not_shift_the_next() -> None:
    with ddp.random_stream(1, 2, 3):
        generator().random(5)
        second = generator().random(3).tolist()
    with ddp.random_stream(1, 2, 3):
        generator().random(5000)
        assert generator().random(3).tolist() == second


def test_blocks_nest_and_end() -> None:
    ddp.manual_seed(5)
    expected = generator().random(2).tolist()
    ddp.manual_seed(5)
    with ddp.random_stream(1, 0, 0):
        outer = generator().random(2).tolist()
        with ddp.random_stream(2, 0, 0):
            generator().random(2)
        second = generator().random(2).tolist()
    assert draws(1, 0, 0)[0][:2] == outer
    assert draws(1, 0, 0)[1][:2] == second
    assert generator().random(2).tolist() == expected


def test_threads_have_streams_of_their_own() -> None:
    ddp.manual_seed(7)
    expected = generator().random(3).tolist()
    found: list[list[float]] = []

    def run() -> None:
        ddp.manual_seed(7)
        found.append(generator().random(3).tolist())

    for _ in range(2):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(10)
    assert found == [expected, expected]


def test_the_same_bits_in_another_process() -> None:
    script = (
        "import ddp_bp as ddp; from ddp_bp.engine import generator\n"
        "with ddp.random_stream(3, 4, 5): print(generator().random(4).tolist())"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout.strip() == str(draws(3, 4, 5, 1)[0]), result.stderr


def test_the_bits_are_those_of_today() -> None:
    # A change here changes every training run that is resumed.
    with ddp.random_stream(1, 2, 3):
        assert generator().bit_generator.random_raw(2).tolist() == [2366570397184489771, 10907532516095174307]
        assert generator(7).bit_generator.random_raw(2).tolist() == [8400499117825521364, 7497190517667440209]


def test_draws_under_one_key_do_not_shift_those_under_another() -> None:
    with ddp.random_stream(1, 2, 3):
        expected = [generator(9).random(3).tolist() for _ in range(2)]
        unkeyed = generator().random(3).tolist()
    with ddp.random_stream(1, 2, 3):
        assert generator().random(3).tolist() == unkeyed
        found = []
        for _ in range(2):
            generator(8).random(5)
            generator().random(5)
            found.append(generator(9).random(3).tolist())
    assert found == expected
    assert expected[0] != expected[1] and unkeyed not in expected


def test_a_kept_draw_has_its_probability_and_reads_words_from_the_low_end() -> None:
    with ddp.random_stream(1, 2, 3):
        words = generator(5).bit_generator.random_raw(2)
    parts = [int(word) >> shift & 0xFFFF for word in words for shift in (0, 16, 32, 48)]
    with ddp.random_stream(1, 2, 3):
        kept = draw_kept((2, 3), 0.3, 5)
    assert kept.ravel().tolist() == [part >= round(0.3 * 65536) for part in parts[:6]]
    with ddp.random_stream(1, 2, 3):
        # 100,000 draws: the deviation of their mean is 0.0014.
        assert draw_kept((1000, 100), 0.3).mean() == pytest.approx(0.7, abs=0.007)
        assert draw_kept((50,), 0.0).all() and not draw_kept((50,), 1.0).any()
        assert draw_kept((0, 3), 0.5).shape == (0, 3) and draw_kept((), 0.5).shape == ()


@pytest.mark.parametrize("wrong", [-1, 2**64, 1.5, True])
def test_keys_are_checked(wrong: object) -> None:
    with pytest.raises(InputError, match="step"), ddp.random_stream(0, wrong, 0):  # type: ignore[arg-type]
        pass
    with pytest.raises(InputError, match="seed"):
        ddp.manual_seed(wrong)  # type: ignore[arg-type]
