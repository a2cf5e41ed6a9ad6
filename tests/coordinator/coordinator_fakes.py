"""Scripted ranks for the tests of the coordinator: with a socket, or straight into the state machine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import zmq

from ddp_bp.coordinator import events as e
from ddp_bp.coordinator.address import CoordinatorAddress
from ddp_bp.coordinator.checkpoints import CheckpointRecord
from ddp_bp.coordinator.config import CoordinatorConfig
from ddp_bp.coordinator.server import run
from ddp_bp.coordinator.state import Coordinator
from ddp_bp.wire import messages as m
from ddp_bp.wire.codec import decode_from_coordinator, encode
from ddp_bp.wire.phases import NUM_PHASE_BUCKETS

DEADLINE_SECONDS = 10.0
M = TypeVar("M", bound=m.Message)


def make_config(run_dir: Path, **changes: Any) -> CoordinatorConfig:
    settings: dict[str, Any] = {"run_dir": run_dir, "run_id": "r1", "recipe_name": "digits", "world_size": 2}
    return CoordinatorConfig(**{**settings, **changes})


def hello(rank: int, **changes: Any) -> m.Hello:
    fields: dict[str, Any] = {
        "protocol_version": m.PROTOCOL_VERSION,
        "package_version": "0.1.0",
        "run_id": "r1",
        "rank": rank,
        "world_size": 2,
        "pid": 100 + rank,
        "hostname": "node",
        "shards": 4,
    }
    return m.Hello(**{**fields, **changes})


def tool_hello() -> m.Hello:
    return hello(m.TOOL_RANK, world_size=0, shards=0, role="tool")


def report(rank: int = 0, step: int = 10, **changes: Any) -> m.Report:
    counts = [0] * NUM_PHASE_BUCKETS
    counts[2] = 5
    fields: dict[str, Any] = {
        "rank": rank,
        "step": step,
        "epoch": 1,
        "sent_at_unix_seconds": 1_700_000_000.0 + step,
        "num_steps": 5,
        "num_samples": 160,
        "phase": "train",
        "phases": {name: m.PhaseTotal(counts, 5 * 150e-6) for name in ("forward", "backward", "rank_wait", "step")},
        "scalars": {"train_loss": 0.5, "learning_rate": 0.1} if rank == 0 else {},
    }
    return m.Report(**{**fields, **changes})


PARAMETERS = m.ArrayLayout(
    "parameters", "model", "float32", 10, [m.TensorLayout("0.weight", [2, 3], 0), m.TensorLayout("0.bias", [4], 6)]
)
MOMENTS = m.ArrayLayout("exp_avg", "optimizer", "float32", 10, [m.TensorLayout("0.weight.exp_avg", [2, 3], 0)])


def manifest(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": 0,
        "step_in_epoch": step,
        "samples": 32 * step,
        "seed": 0,
        "shards": 4,
        "world_size": 2,
        "train_loss": 1.0 / (1 + step),
    }


def checkpoint_parts(
    rank: int, step: int, request_id: str, world_size: int = 2, answers: str = ""
) -> list[tuple[m.FromWorker, list[bytes]]]:
    """What one rank sends: its part of 0, 1, 2, ... as parameters, and of their negatives as moments."""
    parts: list[tuple[m.FromWorker, list[bytes]]] = [
        (m.CheckpointBegin(request_id, rank, world_size, manifest(step), [PARAMETERS, MOMENTS], answers), [])
    ]
    lo, hi = rank * 10 // world_size, (rank + 1) * 10 // world_size
    for name, sign in (("parameters", 1), ("exp_avg", -1)):
        for begin in range(lo, hi, 3):
            values = sign * np.arange(begin, min(begin + 3, hi), dtype="<f4")
            parts.append((m.CheckpointChunk(request_id, rank, name, begin), [values.tobytes()]))
    parts.append((m.CheckpointEnd(request_id, rank), []))
    return parts


FROM_RANKS: list[m.FromWorker] = [
    report(0),
    m.LedgerRecords(0, ['{"step": 0}'], 0, ""),
    m.Evaluation(1, 0, 0.5, None, 10, 0.1),
    checkpoint_parts(0, 5, "a")[0][0],
    m.Failure(0, 1, "error", ""),
    m.Finished(0, {}),
    m.Goodbye(0),
]


class Machine:
    """The state machine with a clock that the test moves, and ranks 0 and 1 at connections b"0" and b"1"."""

    def __init__(self, run_dir: Path, **changes: Any) -> None:
        self.now = 1000.0
        config = make_config(run_dir, **changes)
        self.coordinator = Coordinator(config, CheckpointRecord(), self.now, 1_700_000_000.0, "tcp://127.0.0.1:1")

    def event(self, event: e.Event) -> list[e.Instruction]:
        return self.coordinator.handle(event, self.now)

    def receive(
        self, identity: bytes, message: m.FromWorker, payloads: list[bytes] | None = None
    ) -> list[e.Instruction]:
        return self.event(e.Received(identity, message, payloads or []))

    def tick(self, seconds: float = 0.0) -> list[e.Instruction]:
        self.now += seconds
        return self.event(e.Tick())

    def join_all(self) -> None:
        num_ranks = self.coordinator.config.world_size + self.coordinator.config.num_spares
        for rank in range(num_ranks):
            self.receive(str(rank).encode(), hello(rank, world_size=num_ranks))

    def send_checkpoint(self, rank: int, step: int, request_id: str, answers: str = "") -> list[e.Instruction]:
        result = []
        for message, payloads in checkpoint_parts(rank, step, request_id, answers=answers):
            result += self.receive(str(rank).encode(), message, payloads)
        return result


def sent(instructions: list[e.Instruction], kind: type[M]) -> list[tuple[bytes, M]]:
    """Messages of one kind among instructions, with their addressees."""
    return [
        (one.identity, one.message) for one in instructions if isinstance(one, e.Send) and isinstance(one.message, kind)
    ]


def exits(instructions: list[e.Instruction]) -> list[int]:
    """The exit codes among instructions."""
    return [one.code for one in instructions if isinstance(one, e.Exit)]


class FakeWorker:
    """A rank with a socket of its own."""

    def __init__(self, address: str, rank: int, **changes: Any) -> None:
        self.rank = rank
        self.hello = hello(rank, **changes)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(address)

    def send(self, message: m.FromWorker, payloads: list[bytes] | None = None) -> None:
        self._socket.send_multipart(encode(message, payloads or []))

    def send_raw(self, *frames: bytes) -> None:
        self._socket.send_multipart(list(frames))

    def join(self) -> m.Welcome:
        self.send(self.hello)
        return self.expect(m.Welcome)

    def expect(self, kind: type[M], seconds: float = DEADLINE_SECONDS) -> M:
        """The next message of a kind; others are passed over."""
        deadline = time.monotonic() + seconds
        while self._socket.poll(max(0, round(1000 * (deadline - time.monotonic())))):
            message, _ = decode_from_coordinator(self._socket.recv_multipart())
            if isinstance(message, kind):
                return message
        raise AssertionError(f"rank {self.rank} got no {kind.__name__} within {seconds} s")

    def send_checkpoint(self, step: int, request_id: str) -> None:
        for message, payloads in checkpoint_parts(self.rank, step, request_id):
            self.send(message, payloads)

    def close(self) -> None:
        self._context.destroy(linger=1000)


class RunningServer:
    """A coordinator in a thread of this process, with a pipe in the place of a parent."""

    def __init__(self, run_dir: Path, **changes: Any) -> None:
        self.run_dir = run_dir
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._workers: list[FakeWorker] = []
        self.address: CoordinatorAddress
        self.exit_code: int | None = None
        self.error: BaseException | None = None
        parent_fd, self._parent_end = os.pipe()
        self._parent_fd = parent_fd
        config = make_config(run_dir, **{"parent_fd": parent_fd, "exit_grace_seconds": 1.0, **changes})
        self._thread = threading.Thread(target=self._run, args=(config,), daemon=True)
        self._thread.start()
        assert self._ready.wait(DEADLINE_SECONDS)
        if self.error is not None:
            self.close()
            raise self.error

    def _run(self, config: CoordinatorConfig) -> None:
        try:
            self.exit_code = run(config, self._serving)
        except BaseException as error:
            self.error = error
        finally:
            self._ready.set()
            self._ended.set()

    def _serving(self, address: CoordinatorAddress) -> None:
        self.address = address
        self._ready.set()

    def worker(self, rank: int, **changes: Any) -> FakeWorker:
        worker = FakeWorker(self.address.address, rank, **changes)
        self._workers.append(worker)
        return worker

    def joined(self) -> list[FakeWorker]:
        """Ranks 0 and 1, welcomed."""
        workers = [self.worker(0), self.worker(1)]
        for worker in workers:
            worker.join()
        return workers

    def wait(self) -> int | None:
        """The exit code, when it ends by itself."""
        assert self._ended.wait(DEADLINE_SECONDS), "the coordinator does not end"
        if self.error is not None:
            raise self.error
        return self.exit_code

    def end_parent(self) -> None:
        if self._parent_end >= 0:
            os.close(self._parent_end)
            self._parent_end = -1

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self.end_parent()
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive(), "the coordinator does not end"
        os.close(self._parent_fd)


@contextmanager
def running(run_dir: Path, **changes: Any) -> Iterator[RunningServer]:
    server = RunningServer(run_dir, **changes)
    try:
        yield server
    finally:
        server.close()
