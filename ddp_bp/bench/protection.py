"""`ddp-bp bench protection`: what a step takes longer for all that is done in case something goes wrong.

That is: marks of what is written, so that others can go on after a death; the look at every gradient, whether it is
finite; and the ledger. Jobs with all of it, with each part left out, and with none take turns within one run. Where
buffers happen to lie in memory makes a difference of some thousandths, so that there are several jobs of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from ddp_bp.bench.models import MODELS, BenchModel, OurTraining
from ddp_bp.bench.race import Seconds, median_ratio, race
from ddp_bp.engine.gradient_size import GradientSize
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.worker.ledger import Ledger

_NUM_WARM_UP_BLOCKS = 3
_NUM_JOBS_OF_A_KIND = 3
# As many steps as a job may take between two reports.
_STEPS_BETWEEN_REPORTS = 100


@dataclass(frozen=True)
class _Kind:
    """What is done of it all."""

    marks: bool = True
    looks: bool = True
    records: bool = True


_ALL, _NONE = _Kind(), _Kind(marks=False, looks=False, records=False)
_WITHOUT_MARKS, _WITHOUT_LOOKS, _WITHOUT_LEDGER = _Kind(marks=False), _Kind(looks=False), _Kind(records=False)
_KINDS = (_ALL, _WITHOUT_MARKS, _WITHOUT_LOOKS, _WITHOUT_LEDGER, _NONE)


class ModelProtection(msgspec.Struct):
    """Shares are of a step without any protection, medians block by block.

    overhead: all of it. marks, looks, ledger: what a step with all of it takes longer than one without this part.
    """

    name: str
    description: str
    seconds_per_step: float
    overhead: float
    marks: float
    looks: float
    ledger: float


class ProtectionReport(msgspec.Struct):
    """All that one run found out. `goes_on`: whether this MPI lets ranks go on after a death; otherwise nothing is
    marked."""

    world_size: int
    blocks: int
    mpi: str
    goes_on: bool
    models: list[ModelProtection]


def measure_protection(communicator: Communicator, names: Sequence[str], num_blocks: int) -> ProtectionReport:
    """Measure the models of these names. Collective; the same on all ranks."""
    models = [_measure_model(communicator, name, MODELS[name], num_blocks) for name in names]
    goes_on = communicator.can_lose_ranks and communicator.size > 1
    return ProtectionReport(communicator.size, num_blocks, communicator.describe(), goes_on, models)


class _Unread(GradientSize):
    """Takes every gradient for finite."""

    def squared(self) -> float:
        return 0.0


class _Steps:
    """Steps of a job of some kind, and what the loop of training makes of them."""

    def __init__(self, communicator: Communicator, model: BenchModel, kind: _Kind) -> None:
        """Collective."""
        self._training = OurTraining(communicator, model, goes_on=kind.marks)
        trained, shards = self._training.team.trained, self._training.team.shards
        if not kind.looks:
            shards.gradient_size = _Unread(trained.parameters, takes_limits=False)
        self._plan, self._ledger = trained.plan, None
        if kind.records:
            plan = trained.plan
            first = Ledger.genesis(plan.seed, plan.num_samples, plan.batch_size, plan.num_shards)
            self._ledger = Ledger(first, communicator.size, keeps_lines=communicator.rank == 0 or kind.marks)

    def take(self, count: int) -> None:
        """Collective."""
        for _ in range(count):
            step = self._training.num_steps
            result = self._training.step()
            if self._ledger is not None:
                epoch, step_in_epoch = self._plan.position(step)
                num_samples = self._plan.batch_size_at(step_in_epoch)
                self._ledger.commit(step, epoch, num_samples, result.shard_digests, result.shard_results, result.owners)
                if step % _STEPS_BETWEEN_REPORTS == 0:
                    self._ledger.take_lines()


def _measure_model(communicator: Communicator, name: str, model: BenchModel, num_blocks: int) -> ModelProtection:
    count = model.steps_per_block
    keys = {f"{kind} {number}": kind for number in range(_NUM_JOBS_OF_A_KIND) for kind in _KINDS}
    contestants = {key: _block(_Steps(communicator, model, kind), count) for key, kind in keys.items()}
    times = race(communicator, contestants, num_blocks, _NUM_WARM_UP_BLOCKS)

    def mean_of(kind: _Kind) -> Seconds:
        found: Seconds = np.mean([times[key] for key, other in keys.items() if other == kind], axis=0)
        return found

    with_all, with_none = mean_of(_ALL), mean_of(_NONE)
    return ModelProtection(
        name,
        model.description,
        float(np.median(with_all)) / count,
        median_ratio(with_all, with_none) - 1.0,
        *(
            median_ratio(with_all - mean_of(kind), with_none)
            for kind in (_WITHOUT_MARKS, _WITHOUT_LOOKS, _WITHOUT_LEDGER)
        ),
    )


def _block(steps: _Steps, count: int) -> Callable[[int], object]:
    """A contestant that takes `count` steps."""
    return lambda _: steps.take(count)
