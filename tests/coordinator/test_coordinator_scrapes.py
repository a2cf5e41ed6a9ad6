"""How long the end of a job is shown for the sake of those who read its metrics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_bp.coordinator.scrapes import DUE, KEPT_SECONDS, MOST_GAP_SECONDS, Scrapes


def scraped(*times: float, timeout_seconds: float | None = None) -> Scrapes:
    scrapes = Scrapes()
    for now in times:
        scrapes.note("prometheus", now, timeout_seconds)
    return scrapes


def test_nobody_is_awaited_where_nobody_reads() -> None:
    assert Scrapes().awaited_seconds(100) == 0


def test_a_reader_that_comes_again_and_again_is_awaited_until_a_little_after_its_time() -> None:
    assert scraped(0, 12).awaited_seconds(13) == 0
    scrapes = scraped(0, 12, 20)
    assert scrapes.awaited_seconds(21) == 12 * DUE - 1
    assert scrapes.awaited_seconds(20 + 12 * DUE) == 0


def test_only_the_last_gaps_count() -> None:
    assert scraped(0, 100, 104, 108).awaited_seconds(108) == 4 * DUE


def test_a_prometheus_is_awaited_from_the_first_time_on_for_as_long_as_follows_from_its_timeout() -> None:
    scrapes = scraped(10, timeout_seconds=2)
    assert scrapes.awaited_seconds(10) == 3 * DUE
    scrapes.note("prometheus", 12, 2)
    assert scrapes.awaited_seconds(12) == 2 * DUE


def test_one_that_comes_every_minute_is_not_awaited_nor_taken_for_a_new_one() -> None:
    scrapes = Scrapes()
    for now in range(0, 600, 60):
        scrapes.note("prometheus", now, 10)
        assert (scrapes.awaited_seconds(now) > 0) == (now == 0)


def test_one_that_comes_since_the_end_has_seen_it() -> None:
    scrapes = scraped(0, 2, 4)
    scrapes.note("other", 4, 6)
    scrapes.job_ended(5)
    scrapes.note("prometheus", 6)
    assert scrapes.awaited_seconds(6) == 4 + 9 * DUE - 6
    scrapes.note("other", 7, 6)
    assert scrapes.awaited_seconds(7) == 0


def test_readers_that_are_gone_are_forgotten() -> None:
    scrapes = Scrapes()
    for number in range(1000):
        scrapes.note(f"browser {number}", number)
    assert len(scrapes._readers) == KEPT_SECONDS + 1


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.floats(0, 100), st.none() | st.floats(0.001, 1e6, allow_subnormal=False)),
        max_size=30,
    ),
    st.floats(0, 200),
)
def test_nobody_is_awaited_for_long_and_a_read_since_the_end_is_enough(
    reads: list[tuple[str, float, float | None]], pause_seconds: float
) -> None:
    scrapes, now = Scrapes(), 0.0
    for reader, gap_seconds, timeout_seconds in reads:
        now += gap_seconds
        scrapes.note(reader, now, timeout_seconds)
    now += pause_seconds
    scrapes.job_ended(now)
    awaited = scrapes.awaited_seconds(now)
    assert 0 <= awaited <= DUE * MOST_GAP_SECONDS
    assert scrapes.awaited_seconds(now + awaited + 1) == 0
    assert scrapes.awaited_seconds(now + 1) == pytest.approx(max(0.0, awaited - 1), abs=1e-6)
    for reader in "ab":
        scrapes.note(reader, now)
    assert scrapes.awaited_seconds(now) == 0
