"""Schedules against torch.optim.lr_scheduler, as functions of the step, and their state."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ddp_bp import nn, optim
from ddp_bp.errors import InputError
from ddp_bp.optim import lr_scheduler

NUM_STEPS = 50
Make = Callable[[Any, Any], Any]

# Each takes the module with the schedules, ours or PyTorch's, and an optimizer with two groups.
SCHEDULES: dict[str, Make] = {
    "LambdaLR": lambda m, o: m.LambdaLR(o, lambda step: 0.9**step),
    "LambdaLR, one each": lambda m, o: m.LambdaLR(o, [lambda step: 1 / (1 + step), lambda step: 2.0]),
    "ConstantLR": lambda m, o: m.ConstantLR(o),
    "ConstantLR, 0.1": lambda m, o: m.ConstantLR(o, factor=0.1, total_iters=13),
    "StepLR": lambda m, o: m.StepLR(o, 7),
    "StepLR, 0.5": lambda m, o: m.StepLR(o, step_size=10, gamma=0.5),
    "MultiStepLR": lambda m, o: m.MultiStepLR(o, [3, 20, 20, 31], gamma=0.5),
    "ExponentialLR": lambda m, o: m.ExponentialLR(o, 0.93),
    "LinearLR": lambda m, o: m.LinearLR(o),
    "LinearLR, down": lambda m, o: m.LinearLR(o, start_factor=1.0, end_factor=0.1, total_iters=30),
    "PolynomialLR": lambda m, o: m.PolynomialLR(o),
    "PolynomialLR, 2": lambda m, o: m.PolynomialLR(o, total_iters=40, power=2.0),
    "CosineAnnealingLR": lambda m, o: m.CosineAnnealingLR(o, T_max=60),
    "CosineAnnealingLR, beyond": lambda m, o: m.CosineAnnealingLR(o, 12, eta_min=0.01),
    "OneCycleLR": lambda m, o: m.OneCycleLR(o, max_lr=0.5, total_steps=60),
    "OneCycleLR, three phases": lambda m, o: m.OneCycleLR(
        o, [0.5, 1.0], epochs=5, steps_per_epoch=10, three_phase=True, pct_start=0.4, anneal_strategy="linear"
    ),
    "OneCycleLR, momentum": lambda m, o: m.OneCycleLR(
        o, 0.3, total_steps=50, base_momentum=[0.5, 0.6], max_momentum=0.9, div_factor=10.0, final_div_factor=100.0
    ),
    "OneCycleLR, no momentum": lambda m, o: m.OneCycleLR(o, 0.3, total_steps=50, cycle_momentum=False),
    "SequentialLR": lambda m, o: m.SequentialLR(
        o,
        [m.ConstantLR(o, 0.5, total_iters=3), m.ExponentialLR(o, 0.9), m.CosineAnnealingLR(o, 20)],
        [10, 25],
    ),
    "CosineWarmupLR": lambda m, o: (
        m.CosineWarmupLR(o, warmup_steps=9, total_steps=50)
        if hasattr(m, "CosineWarmupLR")
        else m.SequentialLR(
            o, [m.LinearLR(o, start_factor=0.1, total_iters=9), m.CosineAnnealingLR(o, T_max=41)], milestones=[9]
        )
    ),
}
EVERY_SCHEDULE = pytest.mark.parametrize("name", SCHEDULES)


def ours(kind: type[optim.Optimizer] = optim.SGD) -> optim.Optimizer:
    first, second = (nn.Parameter(np.ones(3)) for _ in range(2))
    more: dict[str, Any] = {"momentum": 0.9} if kind is optim.SGD else {}
    return kind([{"params": [first]}, {"params": [second], "lr": 0.02}], lr=0.1, **more)


def theirs(kind: str = "SGD") -> Any:
    import torch

    first, second = (torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    more: dict[str, Any] = {"momentum": 0.9} if kind == "SGD" else {}
    return getattr(torch.optim, kind)([{"params": [first]}, {"params": [second], "lr": 0.02}], lr=0.1, **more)


def settings_of(optimizer: Any) -> list[float]:
    momentum = "momentum" if "momentum" in optimizer.defaults else "betas"
    values = [(group["lr"], group[momentum]) for group in optimizer.param_groups]
    return [number for rate, other in values for number in (rate, *np.atleast_1d(other).tolist())]


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@EVERY_SCHEDULE
def test_fifty_steps_are_those_of_pytorch(name: str, kind: str) -> None:
    """Rates and momenta, and the weights that come of them."""
    import torch

    optimizer, expected = ours(getattr(optim, kind)), theirs(kind)
    with warnings.catch_warnings():
        # PyTorch warns of its own SequentialLR.
        warnings.simplefilter("ignore")
        schedule, their_schedule = (
            SCHEDULES[name](lr_scheduler, optimizer),
            SCHEDULES[name](torch.optim.lr_scheduler, expected),
        )
        for step in range(NUM_STEPS):
            assert settings_of(optimizer) == pytest.approx(settings_of(expected), rel=1e-8, abs=1e-15), step
            gradient = np.cos(np.arange(3.0) + step)
            for group, their_group in zip(optimizer.param_groups, expected.param_groups, strict=True):
                group["params"][0].grad = gradient.copy()
                their_group["params"][0].grad = torch.tensor(gradient)
            optimizer.step()
            expected.step()
            if step < NUM_STEPS - 1:
                schedule.step()
                their_schedule.step()
            assert schedule.get_last_lr() == pytest.approx(their_schedule.get_last_lr(), rel=1e-8, abs=1e-15)
    for group, their_group in zip(optimizer.param_groups, expected.param_groups, strict=True):
        np.testing.assert_allclose(
            group["params"][0].numpy(), their_group["params"][0].detach().numpy(), rtol=1e-8, atol=1e-10
        )


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(set(lr_scheduler.__all__) - {"LRScheduler", "CosineWarmupLR"}))
def test_arguments_and_defaults_are_those_of_pytorch(name: str) -> None:
    import torch

    our = inspect.signature(getattr(lr_scheduler, name)).parameters
    their = inspect.signature(getattr(torch.optim.lr_scheduler, name)).parameters
    assert list(our) == list(their)
    assert {key: p.default for key, p in our.items()} == {key: p.default for key, p in their.items()}


def test_every_schedule_is_compared() -> None:
    compared = {name.split(",")[0] for name in [*SCHEDULES, *PLATEAUS]}
    assert compared == set(lr_scheduler.__all__) - {"LRScheduler"}


@EVERY_SCHEDULE
def test_rates_follow_from_the_step_alone(name: str) -> None:
    optimizer = ours()
    schedule = SCHEDULES[name](lr_scheduler, optimizer)
    stepped = []
    for _ in range(NUM_STEPS):
        stepped.append(settings_of(optimizer))
        schedule.step()
    for step in (31, 0, 9, 49, 10):
        before = settings_of(optimizer)
        rates = schedule.rates(step)
        assert settings_of(optimizer) == before
        schedule.apply(step)
        assert settings_of(optimizer) == stepped[step]
        assert schedule.get_last_lr() == rates == [group["lr"] for group in optimizer.param_groups]


@EVERY_SCHEDULE
def test_a_restored_schedule_goes_on(name: str) -> None:
    straight = ours()
    schedule = SCHEDULES[name](lr_scheduler, straight)
    for _ in range(17):
        schedule.step()
    resumed = ours()
    other = SCHEDULES[name](lr_scheduler, resumed)
    other.load_state_dict(schedule.state_dict())
    for _ in range(3):
        assert settings_of(resumed) == settings_of(straight)
        schedule.step()
        other.step()
    assert other.state_dict() == schedule.state_dict() == {"last_epoch": 20}
    with pytest.raises(InputError, match="expected last_epoch"):
        other.load_state_dict({"step": 3})


def test_last_epoch_begins_later() -> None:
    optimizer = ours()
    schedule = lr_scheduler.ExponentialLR(optimizer, 0.5, last_epoch=2)
    assert schedule.last_epoch == 3
    assert [group["lr"] for group in optimizer.param_groups] == [0.1 / 8, 0.02 / 8]
    schedule.step()
    assert optimizer.lr == 0.1 / 16


def test_one_cycle_ends_where_it_is_to_end() -> None:
    schedule = lr_scheduler.OneCycleLR(ours(), 0.5, total_steps=10, anneal_strategy="linear")
    assert schedule.rates(10) == schedule.rates(9) == pytest.approx([0.5 / 25 / 1e4] * 2)
    assert schedule.momenta(10) == [0.95, 0.95]
    whole = lr_scheduler.OneCycleLR(ours(), 0.5, total_steps=1, pct_start=1.0)
    assert whole.rates(0) == pytest.approx([0.5, 0.5])


def test_warmup_without_warmup_and_beyond_the_end() -> None:
    schedule = lr_scheduler.CosineWarmupLR(ours(), warmup_steps=0, total_steps=10, eta_min=0.01)
    assert schedule.rates(0) == [0.1, 0.02]
    assert schedule.rates(10) == schedule.rates(1000) == pytest.approx([0.01, 0.01])


# ---- what is measured decides

PLATEAUS: dict[str, dict[str, Any]] = {
    "ReduceLROnPlateau": {"patience": 2},
    "ReduceLROnPlateau, max": {"mode": "max", "factor": 0.5, "patience": 1, "cooldown": 3, "min_lr": [0.01, 0.004]},
    "ReduceLROnPlateau, abs": {"threshold": 0.3, "threshold_mode": "abs", "patience": 0, "factor": 0.8, "eps": 1e-3},
    "ReduceLROnPlateau, max abs": {"mode": "max", "threshold": 0.3, "threshold_mode": "abs", "patience": 1},
}
METRICS = [*(2 * np.exp(-np.arange(20) / 5) + 0.3 * np.cos(np.arange(20))), math.nan, math.inf, *np.cos(np.arange(28))]


@pytest.mark.parity
@pytest.mark.parametrize("name", PLATEAUS)
def test_plateaus_are_those_of_pytorch_and_can_be_restored(name: str) -> None:
    import torch

    optimizer, expected = ours(), theirs()
    schedule = lr_scheduler.ReduceLROnPlateau(optimizer, **PLATEAUS[name])
    their_schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(expected, **PLATEAUS[name])
    seen = set()
    for step, value in enumerate(METRICS):
        schedule.step(value)
        their_schedule.step(value)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([group["lr"] for group in expected.param_groups], rel=1e-12), step
        assert schedule.get_last_lr() == rates
        seen.add(tuple(rates))
        if step == 23:
            saved = schedule.state_dict()
            optimizer = ours()
            schedule = lr_scheduler.ReduceLROnPlateau(optimizer, **PLATEAUS[name])
            schedule.load_state_dict(saved)
            assert [group["lr"] for group in optimizer.param_groups] == rates
    assert len(seen) > 2
    with pytest.raises(InputError, match="the state does not fit this ReduceLROnPlateau"):
        schedule.load_state_dict({"best": 1.0})


# ---- what is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda o: lr_scheduler.StepLR(o, 0), "StepLR takes a whole number of at least 1 for step_size and got 0"),
        (lambda o: lr_scheduler.ConstantLR(o, 2.0), "factor"),
        (lambda o: lr_scheduler.LinearLR(o, start_factor=0.0), "start_factor"),
        (lambda o: lr_scheduler.LinearLR(o, end_factor=1.5), "end_factor"),
        (lambda o: lr_scheduler.LinearLR(o, total_iters=0), "total_iters"),
        (lambda o: lr_scheduler.PolynomialLR(o, 2.5), "total_iters"),
        (lambda o: lr_scheduler.PolynomialLR(o, power=-1.0), "power"),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, -1), "T_max"),
        (lambda o: lr_scheduler.CosineWarmupLR(o, -1, 10), "warmup_steps"),
        (lambda o: lr_scheduler.CosineWarmupLR(o, 10, 10), "above warmup_steps=10 for total_steps and got 10"),
        (lambda o: lr_scheduler.LambdaLR(o, [abs]), "lr_lambda has 1 values for 2 parameter groups"),
        (lambda o: lr_scheduler.LambdaLR(o, lambda step: -1.0), "finite lr"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1), "either total_steps, or epochs"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, epochs=0, steps_per_epoch=3), "epochs"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, 10, pct_start=2.0), "pct_start"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, 10, anneal_strategy="sine"), "anneal_strategy"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, 10, div_factor=0.0), "div_factor"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, 10, final_div_factor=0.0), "final_div_factor"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, 10).apply(11), "step 11 is beyond the 10 steps"),
        (lambda o: lr_scheduler.OneCycleLR(ours(optim.Adagrad), 0.1, 10), "neither momentum nor betas"),
        (lambda o: lr_scheduler.SequentialLR(o, [], []), "one milestone less"),
        (lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.ConstantLR(o)] * 3, [5, 2]), "ascending"),
        (lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.ReduceLROnPlateau(o)], []), "is a ReduceLROnPlateau"),
        (lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.ConstantLR(ours())], []), "another optimizer"),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, "least"), "mode"),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=1.0), "factor"),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, threshold_mode="both"), "threshold_mode"),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, min_lr=[0.1]), "min_lr has 1 values for 2"),
    ],
)
def test_arguments_are_checked_by_name(make: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(ours())
