"""The keys of a recipe: their types, limits, defaults and meaning.

Limits stand in the annotations, so that one walker (`load`) can check every key and name it. Rules that span keys are
in each section's `conflicts`. This module must not read files, and must not import the rooms that act on a recipe.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

# Counts and seeds fit into 64 signed bits, as in the ledger, in messages and in keys of random streams.
_LARGEST = 2**63 - 1

PositiveInt = Annotated[int, Meta(ge=1, le=_LARGEST)]
Count = Annotated[int, Meta(ge=0, le=_LARGEST)]
PositiveFloat = Annotated[float, Meta(gt=0)]
NonNegativeFloat = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the sections."""

    def conflicts(self) -> list[str]:
        """Problems that no single key shows, one line each."""
        return []


class ModelSection(Section, frozen=True, kw_only=True):
    """`[model]`: a packaged model by `name`, or one's own by `factory = "package.module:function"`.

    Either is called as `build(input_shape, num_outputs, **options)` and returns a `ddp_bp.nn.Module`.
    """

    name: str | None = None
    factory: str | None = None
    options: dict[str, Any] = {}

    def conflicts(self) -> list[str]:
        return _exactly_one("model", ("name", self.name), ("factory", self.factory))


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
        return _exactly_one("data", ("name", self.name), ("path", self.path))


class TrainSection(Section, frozen=True, kw_only=True):
    """`[train]`: how long, in which batches, cut into how many shards. `batch_size` is the global batch."""

    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    batch_size: PositiveInt = 32
    shards: PositiveInt | None = None
    seed: Count = 0
    ema_decay: Fraction | None = None
    eval_every_epochs: Count = 1
    eval_batch_size: PositiveInt = 256


class OptimizerSection(Section, frozen=True, kw_only=True):
    """`[optimizer]`: which optimizer, with PyTorch's argument names."""

    name: Literal["sgd", "adam", "adamw"] = "adam"
    lr: PositiveFloat = 1e-3
    momentum: Fraction | None = None
    dampening: Fraction | None = None
    nesterov: bool | None = None
    betas: tuple[Fraction, Fraction] | None = None
    eps: PositiveFloat | None = None
    weight_decay: NonNegativeFloat | None = None
    amsgrad: bool | None = None
    clip_norm: PositiveFloat | None = None
    clip_value: PositiveFloat | None = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the optimizer's class: those that the recipe names, besides `lr`."""
        keys = OPTIMIZER_ARGUMENTS[self.name]
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}

    def conflicts(self) -> list[str]:
        allowed = OPTIMIZER_ARGUMENTS[self.name]
        problems = [
            f"optimizer.{key}: does not apply to optimizer {self.name!r}, which takes lr, {', '.join(allowed)}"
            for key in sorted({key for keys in OPTIMIZER_ARGUMENTS.values() for key in keys})
            if key not in allowed and getattr(self, key) is not None
        ]
        if self.nesterov and (not self.momentum or self.dampening):
            problems.append("optimizer.nesterov: needs optimizer.momentum above 0 and optimizer.dampening 0")
        return problems


class CheckpointSection(Section, frozen=True, kw_only=True):
    """`[checkpoint]`: when one is due besides the one at the end (0: never), and how many stay."""

    every_steps: Count = 0
    every_seconds: NonNegativeFloat = 0.0
    keep: PositiveInt = 3
    keep_best: bool = True


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
    optimizer: OptimizerSection = OptimizerSection()
    checkpoint: CheckpointSection = CheckpointSection()
    coordinator: CoordinatorSection = CoordinatorSection()


OPTIMIZER_ARGUMENTS = {
    "sgd": ("momentum", "dampening", "nesterov", "weight_decay"),
    "adam": ("betas", "eps", "weight_decay", "amsgrad"),
    "adamw": ("betas", "eps", "weight_decay", "amsgrad"),
}

# What may differ between the first start of a run and a resume: how long, when to save, and where to listen. Anything
# else would make it another run, whose bits could not be the same.
CHANGEABLE = (
    "title",
    "train.epochs",
    "train.max_steps",
    "train.eval_every_epochs",
    "checkpoint",
    "coordinator",
)


def differences(first: Recipe, second: Recipe) -> list[str]:
    """The keys, other than the changeable ones, in which two recipes differ: `key: first -> second`, one line each."""
    a, b = _flatten(msgspec.to_builtins(first)), _flatten(msgspec.to_builtins(second))
    keys = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    return [f"{key}: {a.get(key)!r} -> {b.get(key)!r}" for key in keys if not _is_changeable(key)]


def identity(recipe: Recipe) -> str:
    """A short digest of what makes a run the run that it is: all keys but the changeable ones. 16 hex digits."""
    flat = _flatten(msgspec.to_builtins(recipe))
    fixed = sorted((key, repr(value)) for key, value in flat.items() if not _is_changeable(key))
    return hashlib.sha256(repr(fixed).encode()).hexdigest()[:16]


def _exactly_one(section: str, *keys: tuple[str, object]) -> list[str]:
    given = [name for name, value in keys if value is not None]
    if len(given) == 1:
        return []
    expected = " and ".join(f"{section}.{name}" for name, _ in keys)
    return [f"{section}: expected exactly one of {expected}, got {'both' if given else 'neither'}"]


def _is_changeable(key: str) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in CHANGEABLE)


def _flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
