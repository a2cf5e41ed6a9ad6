"""The sections that say what is minimised and how: `[loss]`, `[optimizer]` and `[schedule]`.

Arguments have PyTorch's names. It must not import the rooms where losses, optimizers and schedules are.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from ddp_bp.recipes.section import (
    ChoiceSection,
    Count,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Share,
)

_ADAM = ("betas", "eps", "weight_decay", "amsgrad")


class OptimizerSection(ChoiceSection, frozen=True, kw_only=True):
    """`[optimizer]`: which optimizer, with PyTorch's argument names.

    decay: what `weight_decay` acts on: "all" parameters, or only "matrices", those of two axes or more, and so neither
        biases nor the scales of normalisation. LARS and LAMB then adapt the rates of these alone.
    clip_norm: the largest Euclidean norm of the mean gradient of a step; a longer one is scaled down to it.
    clip_value: the largest absolute value of an element of it; others are cut off there.
    """

    called: ClassVar[str] = "optimizer"
    takes: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType(
        {
            "sgd": ("momentum", "dampening", "nesterov", "weight_decay"),
            "adam": _ADAM,
            "adamw": _ADAM,
            "rmsprop": ("alpha", "eps", "weight_decay", "momentum", "centered"),
            "adagrad": ("lr_decay", "weight_decay", "initial_accumulator_value", "eps"),
            "adadelta": ("rho", "eps", "weight_decay"),
            "nadam": ("betas", "eps", "weight_decay", "momentum_decay", "decoupled_weight_decay"),
            "lion": ("betas", "weight_decay"),
            "lars": ("momentum", "weight_decay", "trust_coefficient"),
            "lamb": ("betas", "eps", "weight_decay"),
        }
    )

    name: Literal["sgd", "adam", "adamw", "rmsprop", "adagrad", "adadelta", "nadam", "lion", "lars", "lamb"] = "adam"
    lr: PositiveFloat = 1e-3
    momentum: Fraction | None = None
    dampening: Fraction | None = None
    nesterov: bool | None = None
    betas: tuple[Fraction, Fraction] | None = None
    eps: PositiveFloat | None = None
    weight_decay: NonNegativeFloat | None = None
    amsgrad: bool | None = None
    alpha: Share | None = None
    centered: bool | None = None
    lr_decay: NonNegativeFloat | None = None
    initial_accumulator_value: NonNegativeFloat | None = None
    rho: Share | None = None
    momentum_decay: NonNegativeFloat | None = None
    decoupled_weight_decay: bool | None = None
    trust_coefficient: PositiveFloat | None = None
    decay: Literal["all", "matrices"] = "all"
    clip_norm: PositiveFloat | None = None
    clip_value: PositiveFloat | None = None

    def conflicts(self) -> list[str]:
        problems = super().conflicts()
        if self.nesterov and (not self.momentum or self.dampening):
            problems.append("optimizer.nesterov: needs optimizer.momentum above 0 and optimizer.dampening 0")
        if self.clip_norm is not None and self.clip_value is not None:
            problems.append("optimizer: expected at most one of optimizer.clip_norm and optimizer.clip_value, got both")
        return problems


class ScheduleSection(ChoiceSection, frozen=True, kw_only=True):
    """`[schedule]`: the learning rate over time, from `optimizer.lr`. Lengths are in epochs, rounded to whole steps.

    epochs: the length of a schedule that has one; after it the last rate stays. By default the length of the training
        at the first start, so that a run that is prolonged later keeps its curve.
    max_steps: the same in steps, if that is shorter.
    warmup_epochs: the rate first rises in a line; the rest of the schedule begins after that.
    step_epochs: the rate is multiplied by `gamma` each time so much has passed.
    milestones: ... or here, counted from the beginning.
    cycle_momentum: whether momentum goes the other way round; by default, if the optimizer has any.
    factor, patience, threshold, cooldown, min_lr: "plateau" lowers the rate when the evaluation loss at the end of an
        epoch has not got better for `patience` evaluations.
    """

    called: ClassVar[str] = "schedule"
    takes: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType(
        {
            "constant": ("warmup_epochs",),
            "step": ("warmup_epochs", "step_epochs", "gamma"),
            "multi_step": ("warmup_epochs", "milestones", "gamma"),
            "cosine": ("epochs", "max_steps", "warmup_epochs", "eta_min"),
            "linear": ("epochs", "max_steps", "warmup_epochs", "start_factor", "end_factor"),
            "polynomial": ("epochs", "max_steps", "warmup_epochs", "power"),
            "one_cycle": (
                "epochs",
                "max_steps",
                "pct_start",
                "div_factor",
                "final_div_factor",
                "anneal_strategy",
                "three_phase",
                "cycle_momentum",
                "base_momentum",
                "max_momentum",
            ),
            "plateau": ("factor", "patience", "threshold", "cooldown", "min_lr"),
        }
    )
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType(
        {"step": ("step_epochs",), "multi_step": ("milestones",)}
    )

    name: Literal["constant", "step", "multi_step", "cosine", "linear", "polynomial", "one_cycle", "plateau"] = (
        "constant"
    )
    epochs: PositiveFloat | None = None
    max_steps: PositiveInt | None = None
    warmup_epochs: NonNegativeFloat | None = None
    eta_min: NonNegativeFloat | None = None
    gamma: PositiveFloat | None = None
    step_epochs: PositiveFloat | None = None
    milestones: Annotated[tuple[PositiveFloat, ...], Meta(min_length=1)] | None = None
    start_factor: PositiveShare | None = None
    end_factor: Share | None = None
    power: NonNegativeFloat | None = None
    pct_start: Share | None = None
    div_factor: PositiveFloat | None = None
    final_div_factor: PositiveFloat | None = None
    anneal_strategy: Literal["cos", "linear"] | None = None
    three_phase: bool | None = None
    cycle_momentum: bool | None = None
    base_momentum: Fraction | None = None
    max_momentum: Fraction | None = None
    factor: Fraction | None = None
    patience: Count | None = None
    threshold: NonNegativeFloat | None = None
    cooldown: Count | None = None
    min_lr: NonNegativeFloat | None = None

    @property
    def has_length(self) -> bool:
        """Whether the schedule is a curve that ends."""
        return "epochs" in self.takes[self.name]

    def conflicts(self) -> list[str]:
        problems = super().conflicts()
        warmup = self.warmup_epochs or 0.0
        if self.epochs is not None and warmup >= self.epochs:
            problems.append(f"schedule.warmup_epochs: expected less than schedule.epochs = {self.epochs}, got {warmup}")
        if self.milestones is not None and (list(self.milestones) != sorted(self.milestones)):
            problems.append(f"schedule.milestones: expected ascending numbers, got {list(self.milestones)}")
        elif self.milestones is not None and self.milestones[0] <= warmup:
            problems.append(
                f"schedule.milestones: expected numbers above schedule.warmup_epochs = {warmup}, "
                f"got {self.milestones[0]}"
            )
        return problems


_WEIGHTS = Annotated[tuple[NonNegativeFloat, ...], Meta(min_length=1)]


class LossSection(ChoiceSection, frozen=True, kw_only=True):
    """`[loss]`: what is minimised, with PyTorch's argument names; "auto" is cross-entropy of classes, else mse.

    weight: for classes, how much each counts; with bce_with_logits, how much each output does.
    """

    called: ClassVar[str] = "loss"
    takes: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType(
        {
            "auto": ("weight", "ignore_index", "label_smoothing"),
            "cross_entropy": ("weight", "ignore_index", "label_smoothing"),
            "nll": ("weight", "ignore_index"),
            "mse": (),
            "l1": (),
            "huber": ("delta",),
            "bce_with_logits": ("weight", "pos_weight"),
            "kl_div": ("reduction", "log_target"),
        }
    )

    name: Literal["auto", "cross_entropy", "nll", "mse", "l1", "huber", "bce_with_logits", "kl_div"] = "auto"
    weight: _WEIGHTS | None = None
    ignore_index: Count | None = None
    label_smoothing: Share | None = None
    delta: PositiveFloat | None = None
    pos_weight: _WEIGHTS | None = None
    reduction: Literal["mean", "batchmean"] | None = None
    log_target: bool | None = None

    def conflicts(self) -> list[str]:
        problems = super().conflicts()
        if self.weight is not None and self.ignore_index is not None:
            problems.append(
                "loss: expected at most one of loss.weight and loss.ignore_index, got both; "
                f"give class {self.ignore_index} the weight 0 instead"
            )
        if self.weight is not None and not any(self.weight):
            problems.append("loss.weight: expected a number above 0 among them, since with all 0 nothing is minimised")
        return problems
