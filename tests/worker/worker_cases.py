"""Small jobs for the tests of the worker, one rank at a time, and a coordinator that follows a script."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import zmq

from ddp_bp import nn, optim
from ddp_bp.data import Dataset, ShardPlan
from ddp_bp.data.batches import Batches
from ddp_bp.engine.buffers import Buffers
from ddp_bp.engine.flat import FlatParameters
from ddp_bp.engine.random import random_stream
from ddp_bp.optim import Optimizer
from ddp_bp.parallel.arena import Arena
from ddp_bp.parallel.bucket_choice import NO_BUCKETS, BucketChoice
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.membership import shard_run
from ddp_bp.parallel.nodes import Nodes, find_nodes
from ddp_bp.wire import messages as m
from ddp_bp.wire.codec import decode_from_worker, encode
from ddp_bp.wire.phases import NUM_PHASE_BUCKETS, PHASE_BUCKETS_SECONDS
from ddp_bp.worker.audit import Audit
from ddp_bp.worker.comparison import Comparison
from ddp_bp.worker.compression import Compression
from ddp_bp.worker.objective import Objective
from ddp_bp.worker.phases import PhaseClock
from ddp_bp.worker.shards import ShardComputation
from ddp_bp.worker.snapshot import Snapshot
from ddp_bp.worker.step import TrainingStep
from ddp_bp.worker.team import Team, Trained, build_team, place_state
from ddp_bp.worker.update import Update

DEADLINE_SECONDS = 10.0
Result = TypeVar("Result")


# ---- a job without a recipe


def classes(num_samples: int, width: int, num_classes: int = 3, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((num_samples, width)).astype(np.float32)
    return Dataset(inputs, rng.integers(0, num_classes, num_samples))


def values(num_samples: int, width: int, num_targets: int = 2, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((num_samples, width)).astype(np.float32)
    return Dataset(inputs, rng.standard_normal((num_samples, num_targets)).astype(np.float32))


def network(width: int, hidden: int, num_outputs: int, dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.Tanh(), *([nn.Dropout(dropout)] if dropout else []), nn.Linear(hidden, num_outputs)
    )


PLAN = ShardPlan(num_samples=34, batch_size=10, num_shards=4, seed=7)


@dataclass(frozen=True)
class Case:
    """What is trained, the same on every rank: 4 shards of batches of 10 out of 34 samples, the last one of 4."""

    dataset: Dataset
    build: Callable[[], nn.Module] = lambda: network(6, 5, 3)
    optimizer: Callable[[FlatParameters], Optimizer] = lambda parameters: optim.SGD(parameters, lr=0.1)
    plan: ShardPlan = PLAN
    is_classification: bool = True
    clip_norm: float | None = None
    clip_value: float | None = None
    ema_decay: float | None = None
    nodes: list[int] | None = None
    audit: float = 0.0
    compare_every_steps: int = 1
    buckets: BucketChoice = NO_BUCKETS
    compressed: bool = False


@dataclass
class Rank:
    """The objects of one rank."""

    team: Team
    step: TrainingStep
    shards: ShardComputation
    audit: Audit
    comparison: Comparison
    update: Update
    parameters: FlatParameters
    optimizer: Optimizer
    buffers: Buffers
    average: optim.ExponentialMovingAverage | None
    objective: Objective
    snapshot: Snapshot
    bounds: tuple[int, int]
    failures: list[tuple[Exception, int]] = field(default_factory=list)

    def state(self) -> dict[str, np.ndarray]:
        """A copy of everything that a step may change."""
        arrays = {"parameters": self.parameters.data, **self.optimizer.state}
        if self.average is not None:
            arrays |= self.average.state
        arrays |= dict(zip(self.buffers.names, self.buffers.committed, strict=True))
        return {name: array.copy() for name, array in arrays.items()} | {"steps": np.array(self.optimizer.num_steps)}


def build_trained(
    communicator: Communicator,
    case: Case,
    layout: int = 1,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    clock: PhaseClock | None = None,
) -> tuple[Trained, Nodes, list[tuple[Exception, int]]]:
    """What a rank trains, which nodes there are, and where its failures are noted."""
    with random_stream(1, 0, 2**62):
        model = wrap(case.build())
    objective = Objective(
        model, nn.CrossEntropyLoss() if case.is_classification else nn.MSELoss(), counts_correct=case.is_classification
    )
    parameters = FlatParameters(model.named_parameters())
    optimizer = case.optimizer(parameters)
    plan = case.plan
    buffers = Buffers(model.named_buffers())
    nodes = find_nodes(communicator) if case.nodes is None else Nodes(case.nodes[: communicator.size])
    failures: list[tuple[Exception, int]] = []
    average, moves = place_state(Arena(communicator, nodes), parameters, optimizer, buffers, case.ema_decay)
    compression = None
    if case.compressed:
        errors = Arena(communicator, nodes).allocate("errors", (plan.num_shards, parameters.size), parameters.dtype)
        compression = Compression(errors, shard_run(plan.num_shards, communicator.size, communicator.rank))
    trained = Trained(
        objective=objective,
        batches=Batches(case.dataset, plan),
        parameters=parameters,
        buffers=buffers,
        optimizer=optimizer,
        average=average,
        moves=moves,
        layout=layout,
        clock=clock or PhaseClock(PHASE_BUCKETS_SECONDS),
        on_failure=lambda error, step: failures.append((error, step)),
        clip_norm=case.clip_norm,
        clip_value=case.clip_value,
        audit=case.audit,
        compare_every_steps=case.compare_every_steps,
        buckets=case.buckets,
        compression=compression,
    )
    return trained, nodes, failures


def build_rank(communicator: Communicator, case: Case, **more: Any) -> Rank:
    """`more`: as in `build_trained`."""
    trained, nodes, failures = build_trained(communicator, case, **more)
    return rank_of(build_team(trained, communicator, nodes), failures)


def rank_of(team: Team, failures: list[tuple[Exception, int]]) -> Rank:
    trained = team.trained
    return Rank(
        team,
        team.step,
        team.shards,
        team.step.audit,
        team.step.comparison,
        team.update,
        trained.parameters,
        trained.optimizer,
        trained.buffers,
        trained.average,
        trained.objective,
        Snapshot(
            trained.objective.model,
            trained.parameters,
            trained.optimizer,
            trained.buffers,
            trained.average,
            team.saved_bounds,
            team.communicator.rank,
            trained.compression,
        ),
        team.saved_bounds,
        failures,
    )


class Broken(nn.Module):
    """Raises in every forward pass."""

    def __init__(self, model: nn.Module, error: Exception) -> None:
        self.model, self.error = model, error

    def forward(self, x: Any) -> Any:
        raise self.error


def outcome(function: Callable[[], Any]) -> Any:
    """What `function` returns, or the exception that it raises."""
    try:
        return function()
    except Exception as error:
        return error


def assert_same(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> None:
    """The same arrays, to the bit."""
    assert {name: array.tobytes() for name, array in first.items()} == {
        name: array.tobytes() for name, array in second.items()
    }


# ---- a coordinator by script


def hello(rank: int = 0, **changes: Any) -> m.Hello:
    fields: dict[str, Any] = {"rank": rank, "world_size": 2, "pid": 1, "hostname": "node", "shards": 4}
    return m.Hello(m.PROTOCOL_VERSION, "0", "run", **{**fields, **changes})


def report(step: int) -> m.Report:
    delta = m.PhaseTotal([0] * NUM_PHASE_BUCKETS, 0.0)
    return m.Report(0, step, 0, 0.0, 1, 10, "train", {"step": delta}, {})


class ScriptedCoordinator:
    """A ROUTER socket that a test reads from and writes to. Every wait has a deadline."""

    def __init__(self, endpoint: str = "tcp://127.0.0.1:*") -> None:
        # Its own context, whose end waits until the port is free again.
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        self._socket.bind(endpoint)
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._peer = b""

    def receive(self) -> tuple[m.FromWorker, list[bytes]]:
        assert self._socket.poll(int(DEADLINE_SECONDS * 1000)), "nothing came"
        self._peer, *frames = self._socket.recv_multipart()
        message, payloads = decode_from_worker(frames)
        return message, [bytes(payload) for payload in payloads]

    def receive_until(self, kind: type[m.Message]) -> list[m.FromWorker]:
        """Every message up to and including the first of `kind`."""
        messages = [self.receive()[0]]
        while not isinstance(messages[-1], kind):
            messages.append(self.receive()[0])
        return messages

    def send(self, *messages: m.FromCoordinator) -> None:
        for message in messages:
            self.send_frames(*encode(message))

    def send_frames(self, *frames: Any) -> None:
        self._socket.send_multipart([self._peer, *frames])

    def close(self) -> None:
        self._context.destroy(linger=0)


@contextmanager
def background(function: Callable[[], Result]) -> Iterator[list[Result]]:
    """Run `function` in a thread; its result is in the list once the block has been left."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(outcome(function)), daemon=True)
    thread.start()
    yield results
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    if isinstance(results[0], Exception):
        raise results[0]
