from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_bp.coordinator.ledger import LedgerFile
from ddp_bp.errors import InputError, WireError


def _lines(*steps: int, tag: str = "") -> list[str]:
    return [json.dumps({"step": step, "tag": tag}) for step in steps]


def _read(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def test_lines_are_appended_across_openings(path: Path) -> None:
    for steps in ([0, 1, 1], [2], []):
        ledger = LedgerFile(path)
        ledger.append(_lines(*steps))
        assert ledger.last_step == (1 if 0 in steps else 2)
        ledger.close()
    assert _read(path) == _lines(0, 1, 1, 2)


def test_a_line_that_a_crash_cut_short_goes(path: Path) -> None:
    path.write_text("\n".join(_lines(0, 1)) + '\n{"step": 2, "ta')
    ledger = LedgerFile(path)
    assert ledger.last_step == 1
    ledger.append(_lines(2))
    ledger.close()
    assert _read(path) == _lines(0, 1, 2)


def test_a_file_of_one_torn_line_is_empty(path: Path) -> None:
    path.write_text('{"step": 2, "ta')
    ledger = LedgerFile(path)
    assert ledger.last_step is None
    ledger.close()
    assert path.read_bytes() == b""


def test_long_lines_are_found_from_the_end(path: Path) -> None:
    long = json.dumps({"step": 1, "ids": "x" * 200_000})
    path.write_text("\n".join([*_lines(0), long]) + "\n" + "y" * 100_000)
    ledger = LedgerFile(path)
    assert ledger.last_step == 1
    ledger.close()
    assert _read(path) == [*_lines(0), long]


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 4)), max_size=8),
    reopen=st.lists(st.booleans(), min_size=8),
)
def test_resumes_replace_what_follows(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[int, int]], reopen: list[bool]
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    ledger, expected = LedgerFile(path), list[str]()
    for i, (first, count) in enumerate(batches):
        lines = _lines(*range(first, first + count), tag=str(i))
        ledger.append(lines)
        expected = [line for line in expected if json.loads(line)["step"] < first] + lines
        assert _read(path) == expected
        if reopen[i]:
            ledger.close()
            ledger = LedgerFile(path)
            assert ledger.last_step == first + count - 1
    ledger.close()


def test_steps_that_are_left_out_are_named_once(path: Path) -> None:
    ledger = LedgerFile(path)
    ledger.append(_lines(5, 6))
    assert ledger.take_gaps() == ()
    ledger.append(_lines(9))
    ledger.append(_lines(11))
    assert ledger.take_gaps() == ((7, 8), (10, 10))
    ledger.append(_lines(11, 12))
    assert ledger.take_gaps() == ((10, 10),)
    ledger.append(_lines(7, 8, 9))
    ledger.append(_lines(9, 10))
    assert ledger.take_gaps() == ()
    ledger.close()
    assert _read(path) == _lines(5, 6, 7, 8, 9, 10)


def test_a_gap_is_noticed_when_its_line_is_durable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    ledger = LedgerFile(path)
    ledger.append(_lines(0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            ledger.append(_lines(3))
    assert ledger.take_gaps() == ()
    ledger.append([])
    assert ledger.take_gaps() == ((1, 2),)
    ledger.close()


@pytest.mark.parametrize("moment", ["write", "sync"])
def test_what_a_full_disk_refused_comes_first_at_the_next_call(
    path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    ledger = LedgerFile(path)
    ledger.append(_lines(0))

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def half(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) < 20:
            return full()
        return real_write(descriptor, data[: len(data) - 10], offset)

    real_write = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, *(("pwrite", half) if moment == "write" else ("fsync", full)))
        for step in (1, 2):
            with pytest.raises(OSError, match="No space"):
                ledger.append(_lines(step))
        assert _read(path) == _lines(0)
        assert ledger.last_step == 0
    ledger.append([])
    assert _read(path) == _lines(0, 1, 2)
    assert ledger.last_step == 2
    ledger.close()


@pytest.mark.parametrize("bad", [["no json"], ['{"other": 1}'], ['{"step": 1}\n{"step": 2}'], _lines(2, 1), ["\ud800"]])
def test_lines_that_do_not_belong_are_refused_once(path: Path, bad: list[str]) -> None:
    ledger = LedgerFile(path)
    with pytest.raises(WireError, match="ledger line"):
        ledger.append(bad)
    ledger.append(_lines(0))
    ledger.close()
    assert _read(path) == _lines(0)


def test_a_file_that_is_no_ledger_is_left_alone(path: Path) -> None:
    path.write_text("hello\n")
    with pytest.raises(InputError, match=r"ledger\.jsonl holds a line that is not of a ledger.*hello"):
        LedgerFile(path)
    assert path.read_text() == "hello\n"


def test_only_one_process_holds_it(path: Path) -> None:
    ledger = LedgerFile(path)
    with pytest.raises(InputError, match="in use by another job"):
        LedgerFile(path)
    ledger.close()
    LedgerFile(path).close()
