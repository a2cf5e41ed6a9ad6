"""`ddp-bp bench scaling`: samples per second on 1 to n ranks with the batch of a rank fixed, and what memory it takes.

All numbers of ranks take turns within one run; ranks that have nothing to do meanwhile sleep.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter, sleep
from typing import TypeVar

import msgspec
import numpy as np

from ddp_bp.bench.machine import minor_faults, proportional_set_bytes
from ddp_bp.bench.models import MODELS, BenchModel, OurTraining
from ddp_bp.bench.race import Seconds
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.nodes import Nodes, find_nodes, share
from ddp_bp.worker.failures import together

Result = TypeVar("Result")
_NUM_WARM_UP_BLOCKS = 2
_POLL_SECONDS = 0.001


class RanksResult(msgspec.Struct):
    """Steps on the first `num_ranks` ranks: medians over blocks, those of `efficiency` block by block.

    `efficiency`: samples per second over those of one rank times the number of ranks.
    `node_bytes`: memory of all their processes on the node where it is most (PSS), interpreter and libraries included.
    `faults_per_step`: minor page faults of a steady step, on the rank that meets most.
    """

    num_ranks: int
    seconds_per_step: float
    samples_per_second: float
    efficiency: float
    node_bytes: int
    faults_per_step: float


class ModelScaling(msgspec.Struct):
    """One model on 1 to n ranks."""

    name: str
    description: str
    ranks: list[RanksResult]


class ScalingReport(msgspec.Struct):
    """All that one run found out."""

    world_size: int
    num_nodes: int
    blocks: int
    mpi: str
    models: list[ModelScaling]


class Turns:
    """Lets some ranks work, of which rank 0 is always one, while the others sleep."""

    def __init__(self, communicator: Communicator, nodes: Nodes) -> None:
        """Collective."""
        self._communicator = communicator
        self._is_near = nodes.node_of_rank[communicator.rank] == nodes.node_of_rank[0]
        self._ended = np.frombuffer(share(communicator, nodes, 8, "turns"), np.int64)
        self._num_turns = 0

    def take(self, work: Callable[[], Result] | None) -> Result | None:
        """Call `work`, if this rank has any, and come back once rank 0 has done its own. Collective.

        Raises:
            RankFailure, RemoteError: `work` raised on some rank; see `together`.
        """
        self._num_turns += 1
        self._communicator.barrier()
        return together(self._communicator, partial(self._work_or_sleep, work))

    def _work_or_sleep(self, work: Callable[[], Result] | None) -> Result | None:
        try:
            return None if work is None else work()
        finally:
            if self._communicator.rank == 0:
                self._ended[0] = self._num_turns
            # One that waited in MPI would take its core. Those of other nodes than rank 0's disturb nobody by that.
            while work is None and self._is_near and self._ended[0] < self._num_turns:
                sleep(_POLL_SECONDS)


def measure_scaling(communicator: Communicator, names: Sequence[str], num_blocks: int) -> ScalingReport:
    """Measure the models of these names. Collective; the same on all ranks."""
    nodes = find_nodes(communicator)
    turns = Turns(communicator, nodes)
    groups = [communicator.part(communicator.rank < count) for count in range(1, communicator.size + 1)]
    models = []
    for name in names:
        model = MODELS[name]
        memory = [_memory(communicator, nodes, turns, group, model) for group in groups]
        seconds = _seconds(communicator, turns, groups, model, num_blocks)
        models.append(ModelScaling(name, model.description, results(model, seconds, memory)))
    for group in groups:
        if group is not None:
            group.close()
    return ScalingReport(communicator.size, len(nodes.ranks), num_blocks, communicator.describe(), models)


def results(model: BenchModel, seconds: Seconds, memory: Sequence[tuple[int, float]]) -> list[RanksResult]:
    """What is shown of the seconds (n, blocks) of blocks on 1 to n ranks, and of (bytes, faults per step) of each."""
    found = []
    for count, (own, (node_bytes, faults)) in enumerate(zip(seconds, memory, strict=True), start=1):
        per_step = float(np.median(own)) / model.steps_per_block
        # The number of samples of a step grows with that of ranks, so that it cancels out.
        efficiency = float(np.median(seconds[0] / own))
        rate = count * model.batch_per_rank / per_step
        found.append(RanksResult(count, per_step, rate, efficiency, node_bytes, faults))
    return found


def _memory(
    communicator: Communicator, nodes: Nodes, turns: Turns, group: Communicator | None, model: BenchModel
) -> tuple[int, float]:
    """Bytes on the node where they are most, and page faults of a steady step on the rank that meets most."""
    own = turns.take(None if group is None else partial(_memory_in_group, group, model)) or (0, 0.0)
    everyone = [json.loads(data) for data in communicator.allgather_bytes(json.dumps(own).encode())]
    by_node = [sum(everyone[rank][0] for rank in ranks) for ranks in nodes.ranks]
    return max(by_node), max(faults for _, faults in everyone)


def _memory_in_group(group: Communicator, model: BenchModel) -> tuple[int, float]:
    """Bytes and page faults per step of this process."""
    training = OurTraining(group, model)
    training.steps(_NUM_WARM_UP_BLOCKS * model.steps_per_block)
    before = minor_faults()
    training.steps(model.steps_per_block)
    faults = (minor_faults() - before) / model.steps_per_block
    num_bytes = proportional_set_bytes()
    # Nobody lets go of shared memory before all have looked.
    group.barrier()
    del training
    gc.collect()
    return num_bytes, faults


def _seconds(
    communicator: Communicator,
    turns: Turns,
    groups: Sequence[Communicator | None],
    model: BenchModel,
    num_blocks: int,
) -> Seconds:
    """Seconds (n, blocks) of each block on 1 to n ranks, those of the rank that took longest."""
    blocks = [None if group is None else _Block(group, model) for group in groups]
    own = np.zeros((len(groups), num_blocks))
    for number in range(-_NUM_WARM_UP_BLOCKS, num_blocks):
        for row, block in zip(own, blocks, strict=True):
            seconds = turns.take(block)
            if seconds is not None and number >= 0:
                row[number] = seconds
    table = np.zeros((communicator.size, own.size))
    communicator.allgather(own.reshape(-1), table)
    longest: Seconds = table.max(axis=0).reshape(own.shape)
    return longest


class _Block:
    """One block of steps on the ranks of a group, timed."""

    def __init__(self, group: Communicator, model: BenchModel) -> None:
        self._group, self._count = group, model.steps_per_block
        self._training = OurTraining(group, model)

    def __call__(self) -> float:
        self._group.barrier()
        began = perf_counter()
        self._training.steps(self._count)
        return perf_counter() - began
