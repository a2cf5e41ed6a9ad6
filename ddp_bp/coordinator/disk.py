"""The one thread that writes what a run leaves (ledger, metrics, faults, checkpoints, summary), strictly in order.

So what was handed over before a checkpoint is durable before it. Carries out disk instructions and answers each with
one event; it decides nothing.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from ddp_bp.checkpoint import CheckpointStore, Manifest
from ddp_bp.coordinator import events as e
from ddp_bp.coordinator.checkpoints import CheckpointRecord
from ddp_bp.coordinator.files import append, cut_torn_line, write_atomically
from ddp_bp.coordinator.ledger import LedgerFile
from ddp_bp.errors import DdpError

LEDGER_FILE: Final = "ledger.jsonl"
FAULTS_FILE: Final = "faults.jsonl"
METRICS_FILE: Final = "metrics.jsonl"
SUMMARY_FILE: Final = "summary.json"
CHECKPOINT_FOLDER: Final = "checkpoints"

_LOG: Final = logging.getLogger(__name__)


class DiskWriter:
    """Takes disk instructions from any thread, and calls `answer` from its own with the event for each."""

    def __init__(self, run_dir: Path, keep: int, keep_best: bool, answer: Callable[[e.DiskAnswer], None]) -> None:
        """Takes hold of the run directory and clears away what earlier crashes left unfinished.

        Raises InputError when another job holds it, DdpError or OSError when the disk refuses.
        """
        self._run_dir = run_dir
        self._keep = keep
        self._keep_best = keep_best
        self._answer = answer
        self._ledger = LedgerFile(run_dir / LEDGER_FILE)
        try:
            self._metrics = os.open(run_dir / METRICS_FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            cut_torn_line(self._metrics)
            self._store = CheckpointStore(run_dir / CHECKPOINT_FOLDER)
            self._store.sweep()
        except BaseException:
            self._ledger.close()
            raise
        self._queue: queue.SimpleQueue[e.DiskInstruction | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="disk-writer", daemon=True)
        self._thread.start()

    def newest(self) -> CheckpointRecord:
        """What earlier sessions of the run left: the newest checkpoint that looks whole, if any."""
        record = CheckpointRecord()
        entry = next((entry for entry in self._store.entries() if entry.problem is None), None)
        if entry is not None:
            record.last_step, record.last_path, record.last_bytes = entry.step, str(entry.path), entry.size_bytes
            record.last_success_unix_seconds = entry.path.stat().st_mtime
        return record

    def submit(self, instruction: e.DiskInstruction) -> None:
        """Queues an instruction."""
        self._queue.put(instruction)

    @property
    def alive(self) -> bool:
        """Whether there is still somebody to carry out what is queued."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Carries out what is queued, and gives up the run directory."""
        self._queue.put(None)
        self._thread.join()
        os.close(self._metrics)
        self._ledger.close()

    def _run(self) -> None:
        while (instruction := self._queue.get()) is not None:
            self._answer(self._carry_out(instruction))

    def _carry_out(self, instruction: e.DiskInstruction) -> e.DiskAnswer:
        try:
            match instruction:
                case e.AppendLedger(lines):
                    self._ledger.append(lines)
                    return e.LedgerWritten(self._ledger.last_step, self._ledger.take_gaps())
                case e.AppendMetrics(record):
                    append(self._metrics, msgspec.json.encode(record) + b"\n")
                    return e.MetricsWritten()
                case e.AppendFault(record):
                    self._append_fault(msgspec.json.encode(record) + b"\n")
                    return e.FaultWritten()
                case e.WriteCheckpoint():
                    return self._write_checkpoint(instruction)
                case e.WriteSummary(summary):
                    content = msgspec.json.format(msgspec.json.encode(summary), indent=2)
                    write_atomically(self._run_dir / SUMMARY_FILE, content + b"\n")
                    return e.SummaryWritten()
        except (DdpError, OSError, msgspec.MsgspecError, TypeError, ValueError, MemoryError) as error:
            return _failed(instruction, str(error))
        except Exception as error:
            # Something that nobody foresaw must not end the thread, for then training would go on without checkpoints.
            _LOG.exception("unexpected error in the disk writer")
            return _failed(instruction, repr(error))

    def _append_fault(self, line: bytes) -> None:
        """Most runs have none, and then no such file."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self._run_dir / FAULTS_FILE, flags, 0o644)
        try:
            cut_torn_line(descriptor)
            append(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _write_checkpoint(self, instruction: e.WriteCheckpoint) -> e.DiskAnswer:
        manifest = msgspec.convert(dict(instruction.manifest), Manifest)
        self._ledger.append(())
        path = self._store.write(manifest, instruction.model, instruction.optimizer)
        size_bytes = sum(file.stat().st_size for file in path.iterdir())
        problem = None
        try:
            self._store.retain(self._keep, self._keep_best, path)
        except DdpError as error:
            problem = str(error)
        return e.CheckpointWritten(instruction.request_id, str(path), size_bytes, problem)


def _failed(instruction: e.DiskInstruction, error: str) -> e.DiskFailed:
    match instruction:
        case e.AppendLedger():
            return e.DiskFailed("ledger", error)
        case e.AppendMetrics():
            return e.DiskFailed("metrics", error)
        case e.AppendFault():
            return e.DiskFailed("faults", error)
        case e.WriteCheckpoint(request_id):
            return e.DiskFailed("checkpoint", error, request_id)
        case e.WriteSummary():
            return e.DiskFailed("summary", error)
