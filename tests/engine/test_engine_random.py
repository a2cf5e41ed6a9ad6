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


@pytest.mark.parametrize("wrong", [-1, 2**64, 1.5, True])
def test_keys_are_checked(wrong: object) -> None:
    with pytest.raises(InputError, match="step"), ddp.random_stream(0, wrong, 0):  # type: ignore[arg-type]
        pass
    with pytest.raises(InputError, match="seed"):
        ddp.manual_seed(wrong)  # type: ignore[arg-type]
