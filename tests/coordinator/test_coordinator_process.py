from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from coordinator_fakes import DEADLINE_SECONDS, FakeWorker

from ddp_bp.coordinator.address import ADDRESS_FILE, CoordinatorAddress
from ddp_bp.wire import messages as m

_PROGRAM = """
import sys
from pathlib import Path
import msgspec
from ddp_bp.coordinator.config import CoordinatorConfig
from ddp_bp.coordinator.server import run

parent_fd = int(sys.argv[2]) if len(sys.argv) > 2 else None
config = CoordinatorConfig(Path(sys.argv[1]), "r1", "digits", 1, parent_fd=parent_fd)
sys.exit(run(config, lambda address: print(msgspec.json.encode(address).decode(), flush=True)))
"""


class _Process:
    def __init__(self, run_dir: Path, parent_fd: int | None = None) -> None:
        arguments = [str(run_dir)] if parent_fd is None else [str(run_dir), str(parent_fd)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=() if parent_fd is None else (parent_fd,),
        )
        assert self.process.stdout is not None
        # Comes to an end with the process, and pytest's own deadline guards against one that says nothing.
        line = self.process.stdout.readline()
        self.address = msgspec.json.decode(line, type=CoordinatorAddress)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(DEADLINE_SECONDS)


@contextmanager
def _process(run_dir: Path, parent_fd: int | None = None) -> Iterator[_Process]:
    running = _Process(run_dir, parent_fd)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


@contextmanager
def _worker(address: CoordinatorAddress) -> Iterator[FakeWorker]:
    worker = FakeWorker(address.address, 0, world_size=1)
    try:
        worker.join()
        yield worker
    finally:
        worker.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_job_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    with _process(tmp_path) as running, _worker(running.address) as worker:
        running.send(number)
        assert worker.expect(m.Stop).reason == number.name
        worker.send(m.Goodbye(0))
        assert running.wait() == 0
    assert not (tmp_path / ADDRESS_FILE).exists()


def test_under_a_parent_ctrl_c_is_left_to_the_parent(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    try:
        with _process(tmp_path, read_end) as running, _worker(running.address) as worker:
            running.send(signal.SIGINT)
            running.send(signal.SIGTERM)
            assert worker.expect(m.Stop).reason == "SIGTERM"
            worker.send(m.Finished(0, {"steps": 3}))
            assert worker.expect(m.Acknowledged).of == "finished"
            os.close(write_end)
            write_end = -1
            running.wait()
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)
    assert (tmp_path / "summary.json").exists()


def test_after_a_kill_the_next_one_carries_on(tmp_path: Path) -> None:
    with _process(tmp_path) as running, _worker(running.address) as worker:
        worker.send(m.LedgerRecords(0, ['{"step": 0}'], 0, "ab"))
        worker.expect(m.Acknowledged)
        running.send(signal.SIGKILL)
        running.wait()
        assert (tmp_path / ADDRESS_FILE).exists()
    with _process(tmp_path) as again, _worker(again.address) as worker:
        assert again.address.pid != running.address.pid
        worker.send(m.LedgerRecords(0, ['{"step": 1}'], 1, "cd"))
        assert worker.expect(m.Acknowledged).step == 1
    assert (tmp_path / "ledger.jsonl").read_text() == '{"step": 0}\n{"step": 1}\n'
