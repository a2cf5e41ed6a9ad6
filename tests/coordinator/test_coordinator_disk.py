from __future__ import annotations

import json
import os
import queue
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from coordinator_fakes import DEADLINE_SECONDS, manifest

from ddp_bp.checkpoint import CheckpointStore, load_checkpoint
from ddp_bp.coordinator import events as e
from ddp_bp.coordinator.disk import DiskWriter
from ddp_bp.coordinator.files import write_atomically
from ddp_bp.errors import DdpError


class _Writer:
    def __init__(self, run_dir: Path, keep: int = 2) -> None:
        self._answers: queue.SimpleQueue[e.DiskAnswer] = queue.SimpleQueue()
        self.disk = DiskWriter(run_dir, keep, False, self._answers.put)

    def do(self, *instructions: e.DiskInstruction) -> list[e.DiskAnswer]:
        for instruction in instructions:
            self.disk.submit(instruction)
        return [self._answers.get(timeout=DEADLINE_SECONDS) for _ in instructions]


@contextmanager
def _writer(run_dir: Path, keep: int = 2) -> Iterator[_Writer]:
    writer = _Writer(run_dir, keep)
    try:
        yield writer
    finally:
        writer.disk.close()


def _checkpoint(step: int) -> e.WriteCheckpoint:
    tensors = {"0.weight": np.full((2, 3), step, np.float32)}
    return e.WriteCheckpoint(f"step-{step}", manifest(step), tensors, {})


def test_every_instruction_has_its_answer_in_order(tmp_path: Path) -> None:
    with _writer(tmp_path) as writer:
        answers = writer.do(
            e.AppendLedger(['{"step": 0}', '{"step": 1}']),
            e.AppendMetrics({"step": 1, "train_loss": float("nan")}),
            _checkpoint(2),
            e.WriteSummary({"steps": 2, "eval_loss": float("inf")}),
            e.AppendLedger(()),
        )
    path = tmp_path / "checkpoints" / "step-00000002"
    size_bytes = sum(file.stat().st_size for file in path.iterdir())
    assert answers == [
        e.LedgerWritten(1),
        e.MetricsWritten(),
        e.CheckpointWritten("step-2", str(path), size_bytes),
        e.SummaryWritten(),
        e.LedgerWritten(1),
    ]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "train_loss": None}
    assert json.loads((tmp_path / "summary.json").read_text()) == {"steps": 2, "eval_loss": None}
    assert load_checkpoint(path).model["0.weight"][0, 0] == 2


def test_old_checkpoints_go(tmp_path: Path) -> None:
    with _writer(tmp_path, keep=2) as writer:
        writer.do(*(_checkpoint(step) for step in (1, 2, 3)))
    assert [entry.step for entry in CheckpointStore(tmp_path / "checkpoints").entries()] == [3, 2]


def test_a_checkpoint_that_is_older_than_others_stays_when_written(tmp_path: Path) -> None:
    with _writer(tmp_path, keep=1) as writer:
        writer.do(_checkpoint(20), _checkpoint(30))
        (answer,) = writer.do(_checkpoint(10))
        assert isinstance(answer, e.CheckpointWritten)
        assert answer.size_bytes == sum(file.stat().st_size for file in Path(answer.path).iterdir()) > 0
        assert load_checkpoint(Path(answer.path)).manifest.step == 10
        writer.do(_checkpoint(11))
    assert [entry.step for entry in CheckpointStore(tmp_path / "checkpoints").entries()] == [30, 11]


def test_the_size_of_a_checkpoint_does_not_hang_on_retention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove_everything(store: CheckpointStore, *_: object) -> None:
        for entry in store.entries():
            shutil.rmtree(entry.path)

    with _writer(tmp_path) as writer:
        monkeypatch.setattr(CheckpointStore, "retain", remove_everything)
        (answer,) = writer.do(_checkpoint(1))
    assert isinstance(answer, e.CheckpointWritten) and answer.size_bytes > 0


def test_metrics_survive_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write

    def at_most_three_bytes(descriptor: int, content: bytes) -> int:
        return real_write(descriptor, content[:3])

    with _writer(tmp_path) as writer:
        monkeypatch.setattr("ddp_bp.coordinator.files.os.write", at_most_three_bytes)
        assert writer.do(e.AppendMetrics({"step": 1}), e.AppendMetrics({"step": 2})) == [e.MetricsWritten()] * 2
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step":1}\n{"step":2}\n'


def test_a_metrics_line_that_the_disk_cut_short_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write

    def full_after_three_bytes(descriptor: int, content: bytes) -> int:
        if not content.startswith(b"{"):
            raise OSError(28, "No space left on device")
        return real_write(descriptor, content[:3])

    with _writer(tmp_path) as writer:
        writer.do(e.AppendMetrics({"step": 1}))
        with monkeypatch.context() as patch:
            patch.setattr("ddp_bp.coordinator.files.os.write", full_after_three_bytes)
            (failed,) = writer.do(e.AppendMetrics({"step": 2}))
        writer.do(e.AppendMetrics({"step": 3}))
    assert isinstance(failed, e.DiskFailed) and "No space" in failed.error
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step":1}\n{"step":3}\n'


def test_steps_without_ledger_lines_are_in_the_next_answer(tmp_path: Path) -> None:
    with _writer(tmp_path) as writer:
        answers = writer.do(*(e.AppendLedger([json.dumps({"step": step})]) for step in (0, 3, 4)))
    assert answers == [e.LedgerWritten(0), e.LedgerWritten(3, ((1, 2),)), e.LedgerWritten(4)]


def test_a_checkpoint_waits_for_a_durable_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with _writer(tmp_path) as writer:
        with monkeypatch.context() as patch:
            patch.setattr("ddp_bp.coordinator.ledger.os.pwrite", full)
            ledger, checkpoint = writer.do(e.AppendLedger(['{"step": 0}']), _checkpoint(1))
        assert isinstance(ledger, e.DiskFailed) and ledger.job == "ledger"
        assert isinstance(checkpoint, e.DiskFailed) and checkpoint.request_id == "step-1"
        assert "No space" in checkpoint.error
        assert not (tmp_path / "checkpoints").exists()
        assert isinstance(writer.do(_checkpoint(2))[0], e.CheckpointWritten)
    assert (tmp_path / "ledger.jsonl").read_text() == '{"step": 0}\n'


def test_a_failure_to_clear_away_is_no_failure_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise DdpError("old ones could not be removed")

    with _writer(tmp_path) as writer:
        monkeypatch.setattr(CheckpointStore, "retain", refuse)
        (answer,) = writer.do(_checkpoint(1))
    assert isinstance(answer, e.CheckpointWritten) and answer.problem == "old ones could not be removed"


@pytest.mark.parametrize(
    ("instruction", "job"),
    [
        (e.AppendLedger(["no json"]), "ledger"),
        (e.AppendMetrics({"step": object()}), "metrics"),
        (e.WriteCheckpoint("a", {"step": 1}, {}, {}), "checkpoint"),
        (e.WriteCheckpoint("a", manifest(1) | {"samples": "many"}, {}, {}), "checkpoint"),
        (e.WriteSummary({"steps": object()}), "summary"),
    ],
)
def test_what_cannot_be_written_is_answered_too(tmp_path: Path, instruction: e.DiskInstruction, job: str) -> None:
    with _writer(tmp_path) as writer:
        answer, after = writer.do(instruction, e.AppendMetrics({"step": 1}))
        assert writer.disk.alive
    assert isinstance(answer, e.DiskFailed) and answer.job == job and answer.error
    assert after == e.MetricsWritten()


def test_an_unforeseen_error_does_not_end_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError

    with _writer(tmp_path) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(CheckpointStore, "write", bug)
            (answer,) = writer.do(_checkpoint(1))
        assert answer == e.DiskFailed("checkpoint", "ZeroDivisionError()", "step-1")
        assert isinstance(writer.do(_checkpoint(2))[0], e.CheckpointWritten)


def test_what_a_crash_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".tmp-step-00000009").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    with _writer(tmp_path) as writer:
        writer.do(_checkpoint(3), e.AppendMetrics({"step": 2}))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    with _writer(tmp_path) as writer:
        record = writer.disk.newest()
    assert record.last_step == 3 and record.last_bytes and record.last_success_unix_seconds
    assert record.results == {}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr("ddp_bp.coordinator.files.os.fsync", fail)
    with pytest.raises(OSError, match="no"):
        write_atomically(path, b"new")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("file", b"old")]
