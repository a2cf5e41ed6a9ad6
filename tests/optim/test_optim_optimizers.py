"""Optimizers: plain scripts, steps in parts, state, and what they refuse."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ddp_bp as ddp
from ddp_bp import nn, optim
from ddp_bp.engine import FlatParameters
from ddp_bp.errors import DtypeError, GraphError, InputError, ShapeError
from ddp_bp.optim.optimizer import BLOCK_SIZE

MAKERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": lambda params, **more: optim.SGD(params, lr=0.1, weight_decay=0.01, **more),
    "momentum": lambda params, **more: optim.SGD(params, lr=0.1, momentum=0.9, dampening=0.2, **more),
    "nesterov": lambda params, **more: optim.SGD(
        params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, **more
    ),
    "adam": lambda params, **more: optim.Adam(params, lr=0.1, weight_decay=0.01, **more),
    "adamw": lambda params, **more: optim.AdamW(params, lr=0.1, **more),
    "amsgrad": lambda params, **more: optim.Adam(params, lr=0.1, amsgrad=True, maximize=True, **more),
    "nadam": lambda params, **more: optim.NAdam(params, lr=0.1, weight_decay=0.01, **more),
    "rmsprop": lambda params, **more: optim.RMSprop(
        params, lr=0.1, momentum=0.9, centered=True, weight_decay=0.01, **more
    ),
    "adagrad": lambda params, **more: optim.Adagrad(
        params, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.5, weight_decay=0.01, **more
    ),
    "adadelta": lambda params, **more: optim.Adadelta(params, weight_decay=0.01, **more),
    "lion": lambda params, **more: optim.Lion(params, lr=0.1, weight_decay=0.01, **more),
}
STATES = {
    "sgd": [],
    "momentum": ["momentum_buffer"],
    "nesterov": ["momentum_buffer"],
    "adam": ["exp_avg", "exp_avg_sq"],
    "adamw": ["exp_avg", "exp_avg_sq"],
    "amsgrad": ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"],
    "nadam": ["exp_avg", "exp_avg_sq"],
    "rmsprop": ["square_avg", "momentum_buffer", "grad_avg"],
    "adagrad": ["sum"],
    "adadelta": ["square_avg", "acc_delta"],
    "lion": ["exp_avg"],
}
every_optimizer = pytest.mark.parametrize("name", sorted(MAKERS))


def vector(size: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(np.random.default_rng(seed).standard_normal(size).astype(np.float32))


def test_the_three_famous_lines() -> None:
    ddp.manual_seed(0)
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((256, 2)).astype(np.float32)
    labels = (inputs[:, 0] * inputs[:, 1] > 0).astype(np.int64)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        loss = criterion(model(ddp.tensor(inputs)), ddp.tensor(labels))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    predictions = model(ddp.tensor(inputs)).argmax(1).numpy()
    assert (predictions == labels).mean() > 0.97
    assert optimizer.num_steps == 150


def test_gradients_accumulate_until_they_are_reset() -> None:
    weight = nn.Parameter(np.zeros(2, np.float32))
    optimizer = optim.SGD([weight], lr=1.0)
    for _ in range(2):
        weight.sum().backward()
    optimizer.step()
    assert weight.tolist() == [-2.0, -2.0]
    optimizer.zero_grad()
    assert weight.grad is None
    weight.sum().backward()
    optimizer.step()
    assert weight.tolist() == [-3.0, -3.0]


def test_a_step_between_forward_and_backward_is_found_out() -> None:
    weight = vector(3)
    optimizer = optim.SGD([weight], lr=0.1)
    loss = (weight * weight).sum()
    optimizer.step()
    with pytest.raises(GraphError, match="changed in place"):
        loss.backward()


@every_optimizer
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_cuts_do_not_change_the_bits(name: str, data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([1, 17, BLOCK_SIZE, 2 * BLOCK_SIZE + 3]))
    cuts = data.draw(st.lists(st.integers(0, size), max_size=4).map(sorted))
    whole, parts = MAKERS[name]([vector(size)]), MAKERS[name]([vector(size)])
    bounds = [0, *cuts, size]
    ranges = data.draw(st.permutations(list(itertools.pairwise(bounds))))
    for step in range(3):
        gradient = np.random.default_rng(step).standard_normal(size).astype(np.float32)
        whole.update(0, size, gradient.copy())
        for lo, hi in ranges:
            parts.update(lo, hi, gradient[lo:hi].copy())
        whole.advance()
        parts.advance()
    assert whole.flat.data.tobytes() == parts.flat.data.tobytes()
    for key, value in whole.state.items():
        assert value.tobytes() == parts.state[key].tobytes()


@every_optimizer
def test_state_is_named_as_in_pytorch_and_can_be_allocated_elsewhere(name: str) -> None:
    asked: list[tuple[str, int, Any]] = []

    def allocate(state: str, size: int, dtype: np.dtype[Any]) -> np.ndarray:
        asked.append((state, size, dtype))
        return np.zeros(size, dtype)

    optimizer = MAKERS[name]([vector(5)], allocate=allocate)
    assert list(optimizer.state) == STATES[name]
    assert asked == [(state, 5, np.float32) for state in STATES[name]]


@every_optimizer
def test_a_restored_optimizer_goes_on_with_the_same_bits(name: str) -> None:
    def run(optimizer: optim.Optimizer, steps: range) -> None:
        for step in steps:
            gradient = np.random.default_rng(step).standard_normal(7).astype(np.float32)
            optimizer.update(0, 7, gradient)
            optimizer.advance()

    def make(values: np.ndarray | None = None) -> optim.Optimizer:
        model = {"0.weight": vector(6, 1), "0.bias": vector(1, 2)}
        flat = FlatParameters((key, p) for key, p in model.items())
        if values is not None:
            flat.data[:] = values
        return MAKERS[name](flat)

    straight, first = make(), make()
    run(straight, range(6))
    run(first, range(3))
    saved = first.state_dict()
    assert set(saved) == {"num_steps"} | {f"{p}.{s}" for p in ("0.weight", "0.bias") for s in STATES[name]}
    second = make(first.flat.data)
    second.load_state_dict(saved)
    run(first, range(3, 4))
    run(second, range(3, 6))
    assert second.num_steps == 6
    assert second.flat.data.tobytes() == straight.flat.data.tobytes()


def test_state_that_does_not_fit_is_listed() -> None:
    optimizer = optim.Adam([("w", vector(4))])
    state = optimizer.state_dict()
    state["w.exp_avg"] = np.zeros(3)
    state["v.exp_avg"] = np.zeros(4)
    del state["w.exp_avg_sq"]
    with pytest.raises(InputError) as caught:
        optimizer.load_state_dict(state)
    message = str(caught.value)
    assert "w.exp_avg: expected shape (4,), got (3,)" in message
    assert "missing: w.exp_avg_sq" in message and "unexpected: v.exp_avg" in message


def test_frozen_parameters_are_left_alone() -> None:
    a, b, c = vector(3), vector(4).requires_grad_(False), vector(2)
    before = b.numpy().copy()
    optimizer = optim.AdamW([a, b, c], lr=0.1)
    optimizer.update(1, 8, np.ones(7, np.float32))
    np.testing.assert_array_equal(b.numpy(), before)
    assert (optimizer.flat.data != np.concatenate([vector(3).numpy(), before, vector(2).numpy()])).tolist() == [
        *(False, True, True, False, False, False, False, True, False)
    ]


def test_an_optimizer_that_lost_its_parameters_says_so() -> None:
    first, second = vector(3), vector(4)
    optimizer = optim.SGD([first, second], lr=0.1)
    same = optim.SGD([first, second], lr=0.1)
    optimizer.step()
    same.step()
    optim.SGD([second], lr=0.1)
    with pytest.raises(InputError, match="SGD: its parameters have moved"):
        optimizer.step()


def test_nadam_finds_its_products_at_any_step() -> None:
    """Its product of momenta follows from the step alone, which is all that a resumed run knows."""
    straight, resumed = optim.NAdam([vector(5)]), optim.NAdam([vector(5)])
    saved = {}
    for step in range(400):
        if step in (3, 250, 398):
            saved[step] = straight.state_dict(), straight.flat.data.copy()
        straight.update(0, 5, np.random.default_rng(step).standard_normal(5).astype(np.float32))
        straight.advance()
        if step in (3, 250, 398):
            saved[step] += (straight.flat.data.copy(),)
    for step in (398, 3, 250):
        state, before, after = saved[step]
        resumed.load_state_dict(state)
        resumed.flat.data[:] = before
        resumed.update(0, 5, np.random.default_rng(step).standard_normal(5).astype(np.float32))
        assert resumed.flat.data.tobytes() == after.tobytes()


def test_the_learning_rate_can_be_changed() -> None:
    weight = nn.Parameter(np.zeros(1, np.float32))
    optimizer = optim.SGD([weight], lr=1.0)
    optimizer.lr = 0.25
    weight.sum().backward()
    optimizer.step()
    assert weight.tolist() == [-0.25]
    with pytest.raises(InputError, match="lr"):
        optimizer.lr = -1.0


def test_arithmetic_stays_in_the_parameters_dtype() -> None:
    for make in MAKERS.values():
        optimizer = make([nn.Parameter(np.ones(3, np.float32))])
        optimizer.step()
        assert optimizer.flat.data.dtype == np.float32
        assert all(value.dtype == np.float32 for value in optimizer.state.values())


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda p: optim.SGD(p, lr=-0.1), "lr"),
        (lambda p: optim.SGD(p, lr=float("nan")), "lr"),
        (lambda p: optim.SGD(p, momentum=-1), "momentum"),
        (lambda p: optim.SGD(p, weight_decay=-1), "weight_decay"),
        (lambda p: optim.SGD(p, nesterov=True), "nesterov"),
        (lambda p: optim.SGD(p, momentum=0.9, dampening=0.1, nesterov=True), "nesterov"),
        (lambda p: optim.Adam(p, betas=(1.0, 0.9)), r"betas\[0\]"),
        (lambda p: optim.Adam(p, betas=(0.9, -0.1)), r"betas\[1\]"),
        (lambda p: optim.Adam(p, eps=-1), "eps"),
        (lambda p: optim.AdamW(p, weight_decay=float("inf")), "weight_decay"),
        (lambda p: optim.SGD([]), "no parameters"),
        (lambda p: optim.SGD(p, lr="0.1"), "lr"),
        (lambda p: optim.SGD(p, dampening=float("nan")), "dampening"),
        (lambda p: optim.SGD(p, maximize=1), "maximize"),
        (lambda p: optim.Adam(p, betas=0.9), "two betas"),
        (lambda p: optim.NAdam(p, momentum_decay=-1.0), "momentum_decay"),
        (lambda p: optim.RMSprop(p, alpha=1.5), "alpha"),
        (lambda p: optim.Adagrad(p, initial_accumulator_value=-1.0), "initial_accumulator_value"),
        (lambda p: optim.Adadelta(p, rho=-0.1), "rho"),
        (lambda p: optim.Lion(p, betas=(0.9, 1.0)), r"betas\[1\]"),
        (lambda p: optim.LARS(p, trust_coefficient=-1.0), "trust_coefficient"),
        (lambda p: optim.LAMB(p, eps=None), "eps"),
    ],
)
def test_arguments_are_checked_by_name(make: Callable[[Any], optim.Optimizer], argument: str) -> None:
    with pytest.raises(InputError, match=argument):
        make([vector(2)])


def test_parts_that_do_not_fit_are_refused() -> None:
    optimizer = optim.SGD([vector(4)])
    with pytest.raises(ShapeError, match=r"elements \[1, 5\) of 4"):
        optimizer.update(1, 5, np.zeros(4, np.float32))
    with pytest.raises(ShapeError, match=r"takes \(2,\)"):
        optimizer.update(1, 3, np.zeros(3, np.float32))
    with pytest.raises(DtypeError, match="float64"):
        optimizer.update(0, 4, np.zeros(4))
    with pytest.raises(ShapeError, match="momentum_buffer"):
        optim.SGD([vector(4)], momentum=0.9, allocate=lambda name, size, dtype: np.zeros(size + 1, dtype))


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adagrad", "LARS", "LAMB"])
def test_what_is_frozen_later_stays_where_it_is_until_it_is_released(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    options = {"momentum": 0.9} if name == "SGD" else {}
    optimizer = getattr(optim, name)(model.parameters(), lr=0.1, **options)
    x = ddp.tensor(np.ones((5, 3), np.float32))

    def step() -> tuple[bool, bool]:
        before = [layer.weight.numpy().copy() for layer in model]
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return tuple(bool((layer.weight.numpy() != b).any()) for layer, b in zip(model, before, strict=True))

    assert step() == (True, True)
    model[0].requires_grad_(False)
    assert step() == (False, True)
    model[0].requires_grad_(True)
    assert step() == (True, True)
