"""When a run counts as survived: what is compared, and what ranks may hold."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ddp_bp.chaos.fill import LIMIT_BYTES, Filler, check_may_fill
from ddp_bp.chaos.usage import WARM_SECONDS, Growth, RankUsage, Usage, UsageWatch
from ddp_bp.chaos.verdict import SAME, differences, problems_of_run
from ddp_bp.errors import InputError

SUMMARY = {key: f"that {key}" for key in SAME} | {"world_size": 4, "recoveries": 0, "seconds": 1.0}


def test_what_may_differ_does_not_count() -> None:
    assert differences(SUMMARY, SUMMARY | {"world_size": 1, "recoveries": 5, "seconds": 9.0}) == []


@pytest.mark.parametrize("key", SAME)
def test_every_other_number_counts(key: str) -> None:
    (problem,) = differences(SUMMARY, SUMMARY | {key: "another"})
    assert problem == f"{key}: expected that {key}, as undisturbed, got another"


def test_a_run_without_a_summary_has_not_finished(tmp_path: Path) -> None:
    assert problems_of_run(tmp_path, SUMMARY) == ["there is no summary.json: training did not finish"]


def test_a_ledger_that_is_missing_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    (problem,) = problems_of_run(tmp_path, {})
    assert "expected a run directory" in problem


def test_ranks_may_hold_a_little_more_and_not_much_more() -> None:
    first = Usage(200_000_000, 40)
    assert RankUsage(2, first, Usage(390_000_000, 70)).problems() == []
    memory, files = RankUsage(2, first, Usage(410_000_000, 73)).problems()
    assert memory == "rank 2: expected at most 400 MB of resident memory after beginning with 200 MB, got 410 MB"
    assert files == "rank 2: expected at most 72 open files after beginning with 40, got 73"


def test_growth_is_that_of_a_process_from_one_disturbance_to_a_later_one_among_as_many_ranks() -> None:
    held = {1: Usage(100, 30), 2: Usage(200, 40)}
    watch = UsageWatch(held.get)

    def disturb(left: dict[int, int], now: float, num_looks: int = 3) -> None:
        for _ in range(num_looks):
            watch.look(left, now)
        watch.before_disturbance(left, now)

    disturb({0: 1, 1: 2}, 10.0)
    held[1] = Usage(150, 39)
    # Only now is it warm.
    disturb({0: 1, 1: 2}, 10.0 + WARM_SECONDS)
    assert watch.growth is None
    held[1] = Usage(300, 60)
    disturb({0: 1}, 30.0)
    assert watch.growth is None, "it is alone, and another might hold as much"
    held[1], held[2] = Usage(153, 38), Usage(200, 42)
    watch.look({0: 1, 1: 2}, 31.0)
    held[1] = Usage(400, 90)
    watch.look({0: 1, 1: 2}, 32.0)
    held[1] = Usage(153, 38)
    disturb({0: 1, 1: 2}, 40.0, num_looks=1)
    assert watch.growth is not None
    assert watch.growth == Growth(pytest.approx(0.02), 2, 2)
    held[1], held[2] = Usage(180, 38), Usage(240, 44)
    disturb({0: 1, 1: 2}, 50.0, num_looks=2)
    assert watch.growth.num_compared == 2, "too few looks to tell what it holds but for a moment"
    disturb({0: 1, 1: 2}, 60.0)
    assert watch.growth == Growth(pytest.approx(0.2), 4, 4)
    del held[2]
    watch.look({0: 1, 1: 2}, now=61.0)
    watch.look({0: 1}, now=62.0)
    assert watch.ranks() == [RankUsage(0, Usage(100, 30), Usage(180, 38))]


def test_only_a_small_file_system_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Room:
        free = LIMIT_BYTES

    monkeypatch.setattr("shutil.disk_usage", lambda _: Room)
    check_may_fill(tmp_path / "not yet" / "there")
    Room.free = LIMIT_BYTES + 1
    with pytest.raises(InputError, match=r"at most 2 GB of free space .* tmpfs .* loop"):
        check_may_fill(tmp_path)


def test_all_room_is_taken_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 12_345

    def allocate(descriptor: int, offset: int, length: int) -> None:
        if offset + length > room:
            raise OSError(errno.ENOSPC, "no room")
        os.ftruncate(descriptor, offset + length)

    monkeypatch.setattr("os.posix_fallocate", allocate)
    filler = Filler(tmp_path / "filling")
    assert room - 512 < filler.fill() <= room
    filler.free()
    filler.free()
    assert list(tmp_path.iterdir()) == []
