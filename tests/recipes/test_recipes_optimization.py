"""Losses, optimizers and schedules of a recipe: every argument of the classes behind them, and no other."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
import pytest

from ddp_bp import nn, optim
from ddp_bp.optim import lr_scheduler
from ddp_bp.recipes.load import validate
from ddp_bp.recipes.optimization import LossSection, OptimizerSection, ScheduleSection
from ddp_bp.recipes.section import ChoiceSection

OPTIMIZERS = {
    "sgd": optim.SGD, "adam": optim.Adam, "adamw": optim.AdamW, "rmsprop": optim.RMSprop, "adagrad": optim.Adagrad,
    "adadelta": optim.Adadelta, "nadam": optim.NAdam, "lion": optim.Lion, "lars": optim.LARS, "lamb": optim.LAMB,
}  # fmt: skip
SCHEDULES = {
    "step": lr_scheduler.StepLR, "multi_step": lr_scheduler.MultiStepLR, "cosine": lr_scheduler.CosineAnnealingLR,
    "linear": lr_scheduler.LinearLR, "polynomial": lr_scheduler.PolynomialLR, "one_cycle": lr_scheduler.OneCycleLR,
    "plateau": lr_scheduler.ReduceLROnPlateau,
}  # fmt: skip
LOSSES = {
    "cross_entropy": nn.CrossEntropyLoss, "nll": nn.NLLLoss, "mse": nn.MSELoss, "l1": nn.L1Loss, "huber": nn.HuberLoss,
    "bce_with_logits": nn.BCEWithLogitsLoss, "kl_div": nn.KLDivLoss,
}  # fmt: skip
# What a recipe does not set by the class's own name: lengths, which it has in epochs; how means are taken; what is
# minimised, by its name; and what `optimizer.decay` says.
NOT_SET: dict[type[ChoiceSection], set[str]] = {
    OptimizerSection: {"params", "lr", "allocate", "maximize", "adapt"},
    ScheduleSection: {
        "optimizer", "last_epoch", "step_size", "total_iters", "T_max", "max_lr", "total_steps", "epochs",
        "steps_per_epoch", "mode", "threshold_mode", "eps",
    },
    LossSection: {"reduction"},
}  # fmt: skip
LENGTHS = {"epochs", "max_steps", "warmup_epochs", "step_epochs"}


def problems(**sections: dict[str, Any]) -> list[str]:
    return validate({"model": {"name": "mlp"}, "data": {"name": "digits"}, **sections})[1]


@pytest.mark.parametrize(
    ("section", "name", "kind"),
    [
        (section, name, kind)
        for section, kinds in ((OptimizerSection, OPTIMIZERS), (ScheduleSection, SCHEDULES), (LossSection, LOSSES))
        for name, kind in kinds.items()
    ],
)
def test_every_argument_can_be_set_and_no_other(section: type[ChoiceSection], name: str, kind: type) -> None:
    takes = set(section.takes[name]) - LENGTHS - {"reduction"}
    assert takes == set(inspect.signature(kind).parameters) - NOT_SET[section]
    assert takes <= {field.name for field in msgspec.structs.fields(section)}


@pytest.mark.parametrize("section", [OptimizerSection, ScheduleSection, LossSection])
def test_every_choice_is_known_and_has_its_keys(section: type[ChoiceSection]) -> None:
    choices = msgspec.inspect.type_info(section).fields[0].type
    assert isinstance(choices, msgspec.inspect.LiteralType)
    assert set(choices.values) == set(section.takes) >= set(section.needs)


def test_only_arguments_that_the_recipe_names_are_passed_on() -> None:
    section = OptimizerSection(name="sgd", momentum=0.0, nesterov=False, decay="matrices", clip_norm=1.0)
    assert section.arguments() == {"momentum": 0.0, "nesterov": False}
    assert OptimizerSection(name="adam").arguments() == {}
    assert OptimizerSection(name="adamw", betas=(0.5, 0.6), eps=1.0).arguments() == {"betas": (0.5, 0.6), "eps": 1.0}
    assert LossSection(name="huber", delta=0.5).arguments() == {"delta": 0.5}


def test_keys_of_another_choice_and_all_other_conflicts_are_reported_at_once() -> None:
    found = problems(
        optimizer={"name": "lion", "eps": 0.1, "rho": 0.9, "clip_norm": 1, "clip_value": 1},
        schedule={"name": "multi_step", "eta_min": 0.1, "warmup_epochs": 3, "milestones": [2, 5]},
        loss={"name": "mse", "delta": 1, "weight": [1, 2], "ignore_index": 1},
    )
    assert found == [
        "loss.delta: does not apply to loss 'mse', which takes no other key",
        "loss.ignore_index: does not apply to loss 'mse', which takes no other key",
        "loss.weight: does not apply to loss 'mse', which takes no other key",
        "loss: expected at most one of loss.weight and loss.ignore_index, got both; give class 1 the weight 0 instead",
        "optimizer.eps: does not apply to optimizer 'lion', which takes betas, weight_decay",
        "optimizer.rho: does not apply to optimizer 'lion', which takes betas, weight_decay",
        "optimizer: expected at most one of optimizer.clip_norm and optimizer.clip_value, got both",
        "schedule.eta_min: does not apply to schedule 'multi_step', which takes warmup_epochs, milestones, gamma",
        "schedule.milestones: expected numbers above schedule.warmup_epochs = 3.0, got 2.0",
    ]


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"schedule": {"name": "step"}}, "schedule.step_epochs: schedule 'step' needs it"),
        ({"schedule": {"name": "multi_step"}}, "schedule.milestones: schedule 'multi_step' needs it"),
        (
            {"schedule": {"name": "multi_step", "milestones": [3, 2]}},
            "schedule.milestones: expected ascending numbers, got [3.0, 2.0]",
        ),
        (
            {"schedule": {"name": "multi_step", "milestones": []}},
            "schedule.milestones: expected an array of length >= 1, got []",
        ),
        (
            {"schedule": {"name": "cosine", "epochs": 2, "warmup_epochs": 2}},
            "schedule.warmup_epochs: expected less than schedule.epochs = 2.0, got 2.0",
        ),
        (
            {"schedule": {"name": "one_cycle", "anneal_strategy": "cosine"}},
            "schedule.anneal_strategy: expected one of cos, linear, got 'cosine' (did you mean 'cos'?)",
        ),
        (
            {"schedule": {"name": "plateau"}, "train": {"eval_every_epochs": 0}},
            "schedule.name: 'plateau' needs evaluations: train.eval_every_epochs above 0",
        ),
        (
            {"schedule": {"name": "one_cycle", "cycle_momentum": True}, "optimizer": {"name": "adagrad"}},
            "schedule.cycle_momentum: optimizer 'adagrad' has no momentum",
        ),
        (
            {"schedule": {"name": "plateau"}, "train": {"epochs": 2, "eval_every_epochs": 3}},
            "train.eval_every_epochs: expected at most train.epochs = 2, since schedule 'plateau' follows the "
            "evaluations; got 3",
        ),
        (
            {"loss": {"weight": [0, 0.0]}},
            "loss.weight: expected a number above 0 among them, since with all 0 nothing is minimised",
        ),
        (
            {"train": {"batch_size": 4, "shards": 5}},
            "train.shards: expected at most train.batch_size = 4, since a shard without a sample computes nothing; "
            "got 5",
        ),
        ({"train": {"ema_decay": 1.0}}, "train.ema_decay: expected a number < 1, got 1.0"),
        (
            {"optimizer": {"decay": "matrix"}},
            "optimizer.decay: expected one of all, matrices, got 'matrix' (did you mean 'matrices'?)",
        ),
        ({"optimizer": {"betas": [0.9, 1]}}, "optimizer.betas: expected a number < 1 at [1], got [0.9, 1]"),
        ({"sample": {"prompt": "x"}}, "sample.characters: a sample needs it"),
        (
            {"fault": {"audit": 0.5}, "blas": {"allow_mixed": True}},
            "fault.audit: with blas.allow_mixed ranks compute different bits, which is no fault of theirs",
        ),
        (
            {"fault": {"audit": 0.5}, "exchange": {"compression": "bf16"}},
            "fault.audit: with exchange.compression a shard's result depends on what its rank keeps from the step "
            "before, so that no other can compute it",
        ),
        (
            {"fault": {"spares": 1}, "exchange": {"compression": "bf16"}},
            "fault.spares: with exchange.compression recovery is not in place, so that a spare could not step in",
        ),
        (
            {"fault": {"spares": 2, "recovery": "restart"}},
            "fault.spares: spares step in where recovery is in place; expected 0 with fault.recovery = 'restart', "
            "got 2",
        ),
        (
            {"exchange": {"overlap": "off", "bucket_bytes": 3}},
            "exchange.bucket_bytes: expected none with exchange.overlap = 'off', got 3",
        ),
        ({"sample": {"characters": 3, "prompt": ""}}, "sample.prompt: expected a string of length >= 1, got ''"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(sections: dict[str, dict[str, Any]], problem: str) -> None:
    assert problems(**sections) == [problem]
