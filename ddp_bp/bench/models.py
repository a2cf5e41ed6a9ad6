"""The networks that whole steps are measured on, with made-up data: multilayer perceptrons under Adam.

Ours are jobs as training assembles them from a recipe, but without files, or recipes for a job of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import msgspec
import numpy as np
import numpy.typing as npt

from ddp_bp.data import Dataset, Loaded, ShardPlan
from ddp_bp.data.augment import Augment
from ddp_bp.engine.flat import FlatParameters
from ddp_bp.engine.random import random_stream
from ddp_bp.nn import CrossEntropyLoss
from ddp_bp.nn.models import mlp
from ddp_bp.optim import Adam
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.recipes import Recipe
from ddp_bp.wire.phases import PHASE_BUCKETS_SECONDS
from ddp_bp.worker.assemble import Job
from ddp_bp.worker.compose import compose
from ddp_bp.worker.failures import print_failure
from ddp_bp.worker.objective import Objective
from ddp_bp.worker.phases import PhaseClock
from ddp_bp.worker.schedule import Schedule
from ddp_bp.worker.step import StepResult

_NUM_BATCHES = 8
_SEED = 1
_INIT_STREAM = 2**62


@dataclass(frozen=True)
class BenchModel:
    """A multilayer perceptron with ReLU. Blocks of steps are timed; a long one evens out what a single step meets."""

    widths: tuple[int, ...]
    batch_per_rank: int
    steps_per_block: int

    @property
    def description(self) -> str:
        """Such as `64-32-10, batch 32 a rank`."""
        return f"{'-'.join(map(str, self.widths))}, batch {self.batch_per_rank} a rank"


MODELS: Mapping[str, BenchModel] = MappingProxyType(
    {
        "tiny": BenchModel((64, 32, 10), 32, 50),
        "middle": BenchModel((784, 512, 512, 10), 128, 10),
        "large": BenchModel((784, 2048, 2048, 10), 256, 2),
    }
)


def made_up_samples(model: BenchModel, count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Inputs (count, first width) and classes (count,), the same on all ranks."""
    rng = np.random.default_rng(_SEED)
    inputs = rng.standard_normal((count, model.widths[0]), np.float32)
    return inputs, rng.integers(0, model.widths[-1], count)


def write_recipe(model: BenchModel, num_ranks: int, checkpoint_every_steps: int, folder: Path) -> Path:
    """The recipe of a job that trains `model` on so many ranks, with its samples beside it; its path."""
    inputs, targets = made_up_samples(model, _NUM_BATCHES * model.batch_per_rank * num_ranks)
    np.savez(folder / "made-up.npz", x=inputs, y=targets)
    recipe = folder / "made-up.toml"
    recipe.write_text(
        f"""
model = {{ name = "mlp", options = {{ hidden = {list(model.widths[1:-1])} }} }}
data = {{ path = "made-up.npz", target = "y", num_classes = {model.widths[-1]} }}
train = {{ batch_size = {model.batch_per_rank * num_ranks}, eval_every_epochs = 0, seed = {_SEED} }}
optimizer = {{ name = "adam", lr = 0.001 }}
checkpoint = {{ every_steps = {checkpoint_every_steps} }}
""",
        encoding="utf-8",
    )
    return recipe


class OurTraining:
    """Steps of `model` as training takes them, loading of batches included."""

    def __init__(
        self, communicator: Communicator, model: BenchModel, shards_per_rank: int = 1, *, goes_on: bool = True
    ) -> None:
        """Collective. More shards cut the same batch into smaller pieces; `goes_on`: after deaths, where MPI can."""
        clock, rank = PhaseClock(PHASE_BUCKETS_SECONDS), communicator.rank
        composition = compose(
            communicator,
            _job(model, communicator.size, shards_per_rank, goes_on=goes_on),
            clock,
            lambda error, step: _show_failure(error, rank, step),
        )
        self.team = composition.team
        self.num_steps = 0
        """How many steps have been taken."""

    def step(self) -> StepResult:
        """Train for one step. Collective."""
        result = self.team.step.run(self.num_steps)
        self.num_steps += 1
        return result

    def steps(self, count: int) -> float:
        """Train for `count` steps; the mean loss of the last one. Collective."""
        loss = float("nan")
        for _ in range(count):
            result = self.step()
            loss = result.loss / result.weight
        return loss


def _job(model: BenchModel, world_size: int, shards_per_rank: int, *, goes_on: bool) -> Job:
    batch_size = model.batch_per_rank * world_size
    inputs, targets = made_up_samples(model, _NUM_BATCHES * batch_size)
    num_classes = model.widths[-1]
    data = Loaded(
        train=Dataset(inputs, targets),
        evaluation=None,
        task="classification",
        num_classes=num_classes,
        num_outputs=num_classes,
        input_shape=inputs.shape[1:],
        augment=Augment(),
        vocabulary=None,
        description="made up",
    )
    with random_stream(_SEED, 0, _INIT_STREAM):
        network = mlp(inputs.shape[1:], num_classes, hidden=model.widths[1:-1])
    optimizer = Adam(FlatParameters(network.named_parameters()), lr=1e-3)
    plan, recipe = ShardPlan(len(inputs), batch_size, world_size * shards_per_rank, _SEED), Recipe()
    if not goes_on:
        recipe = msgspec.structs.replace(recipe, fault=msgspec.structs.replace(recipe.fault, recovery="none"))
    return Job(
        recipe=recipe,
        data=data,
        objective=Objective(network, CrossEntropyLoss(), counts_correct=True),
        parameters=optimizer.flat,
        optimizer=optimizer,
        schedule=Schedule(recipe.schedule, optimizer, plan.steps_per_epoch),
        plan=plan,
        total_steps=plan.steps_per_epoch,
        layout=0,
    )


def _show_failure(error: BaseException, rank: int, step: int) -> None:
    print_failure(error, rank, step)
