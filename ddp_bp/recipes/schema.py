"""The keys of a recipe: their types, limits, defaults and meaning.

Limits stand in the annotations, so that one walker (`load`) can check every key and name it. Rules that span keys are
in each section's `conflicts`. This module must not read files, and must not import the rooms that act on a recipe.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ddp_bp.recipes.blas import BlasSection
from ddp_bp.recipes.fault import FaultSection
from ddp_bp.recipes.optimization import LossSection, OptimizerSection, ScheduleSection
from ddp_bp.recipes.section import (
    Count,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
    exactly_one,
)

Port = Annotated[int, Meta(ge=0, le=65535)]


class ModelSection(Section, frozen=True, kw_only=True):
    """`[model]`: a packaged model by `name`, or one's own by `factory = "package.module:function"`.

    Either is called as `build(input_shape, num_outputs, **options)` and returns a `ddp_bp.nn.Module`.
    """

    name: str | None = None
    factory: str | None = None
    options: dict[str, Any] = msgspec.field(default_factory=dict)

    def conflicts(self) -> list[str]:
        return exactly_one("model", ("name", self.name), ("factory", self.factory))


class NormalizeSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`data.augment.normalize`: one mean and one standard deviation for each channel, of images in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[PositiveFloat, ...]


class AugmentSection(Section, frozen=True, kw_only=True):
    """`[data.augment]`: how images are varied while training; `normalize` holds for evaluation too. Pixels."""

    shift: Count = 0
    flip: bool = False
    crop: Count = 0
    normalize: NormalizeSection | None = None


class DataSection(Section, frozen=True, kw_only=True):
    """`[data]`: a data set by `name`, or a .npz, .npy, .csv or .txt file by `path`."""

    name: str | None = None
    path: str | None = None
    target_path: str | None = None
    inputs: str = "x"
    target: str | int | None = None
    task: Literal["auto", "classification", "regression"] = "auto"
    num_classes: PositiveInt | None = None
    eval_fraction: Fraction | None = None
    eval_path: str | None = None
    eval_target_path: str | None = None
    standardize: bool = False
    split_seed: Count = 0
    folder: str | None = None
    context: PositiveInt | None = None
    input_shape: tuple[PositiveInt, ...] | None = None
    standardize_targets: bool = False
    augment: AugmentSection = AugmentSection()

    def conflicts(self) -> list[str]:
        return exactly_one("data", ("name", self.name), ("path", self.path))


class TrainSection(Section, frozen=True, kw_only=True):
    """`[train]`: how long, in which batches, cut into how many shards. `batch_size` is the global batch.

    `ema_decay`: evaluate and keep an exponential moving average of the weights, which moves by 1 - `ema_decay` of the
    difference after each step.
    """

    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    batch_size: PositiveInt = 32
    shards: PositiveInt | None = None
    seed: Count = 0
    ema_decay: Fraction | None = None
    eval_every_epochs: Count = 1
    eval_batch_size: PositiveInt = 256

    def conflicts(self) -> list[str]:
        if self.shards is not None and self.shards > self.batch_size:
            return [
                f"train.shards: expected at most train.batch_size = {self.batch_size}, since a shard without a sample "
                f"computes nothing; got {self.shards}"
            ]
        return []


class SampleSection(Section, frozen=True, kw_only=True):
    """`[sample]`: for text, what the trained model writes when training has ended.

    characters: how many; none unless it is set.
    prompt: what it goes on from. By default a new line, which the sample then does not show.
    temperature: logits are divided by it before a character is drawn; 0 takes the likeliest one.
    """

    characters: PositiveInt | None = None
    prompt: Annotated[str, Meta(min_length=1)] | None = None
    temperature: NonNegativeFloat = 1.0

    def conflicts(self) -> list[str]:
        if self.characters is None and self != SampleSection():
            return ["sample.characters: a sample needs it"]
        return []


class CheckpointSection(Section, frozen=True, kw_only=True):
    """`[checkpoint]`: when one is due besides the one at the end (0: never), and how many stay."""

    every_steps: Count = 0
    every_seconds: NonNegativeFloat = 0.0
    keep: PositiveInt = 3
    keep_best: bool = True


class ExchangeSection(Section, frozen=True, kw_only=True):
    """`[exchange]`: how gradients get from rank to rank. Nothing but `compression` changes a bit of the result.

    algorithm: "auto" sums gradients where they lie if ranks can share memory, and sends messages between nodes;
        "messages" does as if no two ranks could.
    overlap: whether gradients cross between nodes while backward goes on: "auto" where a measurement at the start says
        that it pays.
    bucket_bytes: how large the pieces are then; 0: as the measurement says.
    compression: "bf16" rounds gradients and their sums to bfloat16, so that half as much is sent.
    """

    algorithm: Literal["auto", "messages"] = "auto"
    overlap: Literal["auto", "on", "off"] = "auto"
    bucket_bytes: Count = 0
    compression: Literal["none", "bf16"] = "none"

    def conflicts(self) -> list[str]:
        if self.bucket_bytes and self.overlap == "off":
            return [f"exchange.bucket_bytes: expected none with exchange.overlap = 'off', got {self.bucket_bytes}"]
        return []


class CoordinatorSection(Section, frozen=True, kw_only=True):
    """`[coordinator]`: where the coordinator listens. Port 0 takes any free one."""

    host: str = "127.0.0.1"
    port: Port = 0
    http_port: Port = 0

    def conflicts(self) -> list[str]:
        if self.port and self.port == self.http_port:
            return [f"coordinator: port and http_port must differ, got {self.port} for both; 0 takes any free one"]
        return []


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """A whole recipe. `title` is for people; everything else has the meaning that its section documents."""

    title: str = ""
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    sample: SampleSection = SampleSection()
    checkpoint: CheckpointSection = CheckpointSection()
    exchange: ExchangeSection = ExchangeSection()
    coordinator: CoordinatorSection = CoordinatorSection()
    blas: BlasSection = BlasSection()
    fault: FaultSection = FaultSection()

    def conflicts(self) -> list[str]:
        """Problems that no single section shows, one line each."""
        problems = []
        if self.schedule.name == "plateau" and not self.train.eval_every_epochs:
            problems.append("schedule.name: 'plateau' needs evaluations: train.eval_every_epochs above 0")
        if self.schedule.name == "plateau" and self.train.eval_every_epochs > self.train.epochs:
            problems.append(
                f"train.eval_every_epochs: expected at most train.epochs = {self.train.epochs}, since schedule "
                f"'plateau' follows the evaluations; got {self.train.eval_every_epochs}"
            )
        if self.fault.audit and self.blas.allow_mixed:
            problems.append(
                "fault.audit: with blas.allow_mixed ranks compute different bits, which is no fault of theirs"
            )
        if self.fault.audit and self.exchange.compression != "none":
            problems.append(
                "fault.audit: with exchange.compression a shard's result depends on what its rank keeps from the step "
                "before, so that no other can compute it"
            )
        if self.fault.spares and self.exchange.compression != "none":
            problems.append(
                "fault.spares: with exchange.compression recovery is not in place, so that a spare could not step in"
            )
        takes = self.optimizer.takes[self.optimizer.name]
        if self.schedule.cycle_momentum and "momentum" not in takes and "betas" not in takes:
            problems.append(f"schedule.cycle_momentum: optimizer {self.optimizer.name!r} has no momentum")
        return problems


# What may differ between the first start of a run and a resume: how long, when to save, where to listen, what is done
# about failures, and kernels, since the machine may be another one. Anything else would make it another run, whose bits
# could not be the same.
CHANGEABLE = (
    "title",
    "train.epochs",
    "train.max_steps",
    "train.eval_every_epochs",
    "sample",
    "checkpoint",
    "exchange",
    "coordinator",
    "blas",
    "fault",
)

# Keys that came when runs without them had already left checkpoints, each with what was done until then. They are part
# of a run's identity only where a recipe says otherwise, so that these checkpoints are still those of their recipes.
LATER_KEYS = (("exchange.compression", "none"),)


def resolve(recipe: Recipe, world_size: int, stored: Recipe | None) -> Recipe:
    """`recipe` with the keys set that depend on the first start of a run, of which `stored` is the recipe, if any.

    These are the number of shards, by default `world_size`, and how long the schedule is, by default as the training.
    """
    shards = recipe.train.shards or (stored.train.shards if stored else world_size)
    schedule = recipe.schedule
    if schedule.has_length and schedule.epochs is None and schedule.max_steps is None:
        first = stored.schedule if stored and stored.schedule.name == schedule.name else None
        schedule = msgspec.structs.replace(
            schedule,
            epochs=first.epochs if first else float(recipe.train.epochs),
            max_steps=first.max_steps if first else recipe.train.max_steps,
        )
    train = msgspec.structs.replace(recipe.train, shards=shards)
    return msgspec.structs.replace(recipe, train=train, schedule=schedule)


def differences(first: Recipe, second: Recipe) -> list[str]:
    """The keys, other than the changeable ones, in which two recipes differ: `key: first -> second`, one line each."""
    a, b = _fixed(first), _fixed(second)
    keys = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    return [f"{key}: {a.get(key)!r} -> {b.get(key)!r}" for key in keys]


def identity(recipe: Recipe) -> str:
    """A short digest of what makes a run the run that it is: all keys but the changeable ones. 16 hex digits."""
    fixed = sorted((key, repr(value)) for key, value in _fixed(recipe).items() if (key, value) not in LATER_KEYS)
    return hashlib.sha256(repr(fixed).encode()).hexdigest()[:16]


def start_id(recipe: Recipe, num_starts: int) -> str:
    """What ranks and coordinator of one start name to each other, so that a rank that is left of an earlier start is
    let in no more: the run's identity, with the number of starts of all ranks before this one."""
    return f"{identity(recipe)}.{num_starts}" if num_starts else identity(recipe)


def _fixed(recipe: Recipe) -> dict[str, Any]:
    """All keys but the changeable ones, with their values."""
    # A plateau is found by evaluations, so that leaving some out would be another run.
    kept = {"train.eval_every_epochs"} if recipe.schedule.name == "plateau" else set()
    kept.add("exchange.compression")
    flat = _flatten(msgspec.to_builtins(recipe))
    return {
        key: value
        for key, value in flat.items()
        if key in kept or not any(key == prefix or key.startswith(prefix + ".") for prefix in CHANGEABLE)
    }


def _flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
