"""Parameter groups: settings of their own, the vector that they share, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from ddp_bp import nn, optim
from ddp_bp.engine import FlatParameters
from ddp_bp.errors import InputError


def vector(*values: float) -> nn.Parameter:
    return nn.Parameter(np.array(values, np.float32))


def test_each_group_has_its_settings() -> None:
    a, b, c = vector(1, 1), vector(1), vector(1, 1, 1)
    optimizer = optim.SGD([{"params": [a, c], "lr": 0.5}, {"params": b, "momentum": 0.9, "maximize": True}], lr=0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]
    assert [group["momentum"] for group in optimizer.param_groups] == [0.0, 0.9]
    assert optimizer.param_groups[0]["params"] == (a, c)
    assert optimizer.lr == 0.5
    for parameter in (a, b, c):
        parameter.sum().backward()
    optimizer.step()
    assert (a.tolist(), b.tolist(), c.tolist()) == ([0.5, 0.5], [1.25], [0.5, 0.5, 0.5])
    optimizer.lr = 0.125
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]
    optimizer.param_groups[1]["lr"] = 1.0
    optimizer.zero_grad()
    b.sum().backward()
    optimizer.step()
    assert b.tolist() == [pytest.approx(1.25 + 1.9, rel=1e-6)]


def test_cuts_through_groups_do_not_change_the_bits() -> None:
    def make() -> optim.Optimizer:
        rng = np.random.default_rng(0)
        a, b, c = (nn.Parameter(rng.standard_normal(size).astype(np.float32)) for size in (40, 7, 900))
        return optim.AdamW([{"params": [a, c], "weight_decay": 0.0}, {"params": [b], "lr": 0.1}])

    whole, parts = make(), make()
    size = whole.flat.size
    for step in range(3):
        gradient = np.random.default_rng(step).standard_normal(size).astype(np.float32)
        whole.update(0, size, gradient.copy())
        for lo, hi in ((900, size), (0, 41), (41, 43), (43, 900)):
            parts.update(lo, hi, gradient[lo:hi].copy())
        whole.advance()
        parts.advance()
    assert whole.flat.data.tobytes() == parts.flat.data.tobytes()


def test_groups_keep_the_vector_that_their_parameters_share() -> None:
    named = [("0.weight", vector(1, 2)), ("0.bias", vector(3)), ("1.weight", vector(4, 5))]
    flat = FlatParameters(named)
    optimizer = optim.Adam([{"params": named[1:2], "lr": 0.1}, {"params": [named[2], named[0]]}])
    assert optimizer.flat.data is flat.data
    assert [slot.name for slot in optimizer.flat.slots] == ["0.weight", "0.bias", "1.weight"]
    optimizer.update(2, 3, np.ones(1, np.float32))
    assert flat.data.tolist() == [1.0, 2.0, pytest.approx(2.9), 4.0, 5.0]


def test_names_are_kept_apart() -> None:
    optimizer = optim.Adam(
        [{"params": nn.Linear(2, 1).named_parameters()}, {"params": nn.Linear(1, 1).named_parameters()}]
    )
    assert [slot.name for slot in optimizer.flat.slots] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert len(optimizer.state_dict()) == 9
    bare = optim.Adam([{"params": nn.Linear(2, 1).parameters()}, {"params": nn.Linear(1, 1).parameters()}])
    assert [slot.name for slot in bare.flat.slots] == ["0", "1", "2", "3"]


def test_state_comes_with_the_setting_that_needs_it() -> None:
    weight = vector(0)
    asked: list[str] = []

    def allocate(name: str, size: int, dtype: np.dtype) -> np.ndarray:
        asked.append(name)
        return np.zeros(size, dtype)

    optimizer = optim.SGD([weight], lr=1.0, allocate=allocate)
    assert not optimizer.state
    optimizer.param_groups[0]["momentum"] = 0.5
    assert asked == ["momentum_buffer"]
    for _ in range(2):
        optimizer.zero_grad()
        weight.sum().backward()
        optimizer.step()
    assert weight.tolist() == [-2.5]


def test_adagrad_groups_begin_with_their_own_sums() -> None:
    optimizer = optim.Adagrad(
        [{"params": vector(1, 1)}, {"params": vector(1), "initial_accumulator_value": 2.0}],
        initial_accumulator_value=0.5,
    )
    assert optimizer.state["sum"].tolist() == [0.5, 0.5, 2.0]


def test_groups_that_cannot_be_used_are_refused() -> None:
    a, b = vector(1), vector(2)
    with pytest.raises(InputError, match=r"parameter '1' is in parameter groups 0 and 1"):
        optim.SGD([{"params": [a]}, {"params": [a, b]}])
    with pytest.raises(InputError, match=r"parameter group 1: expected a dict with 'params'"):
        optim.SGD([{"params": [a]}, b])
    with pytest.raises(InputError, match=r"parameter group 0: expected a dict with 'params'"):
        optim.SGD([{"parameters": [a]}])
    with pytest.raises(InputError, match=r"SGD has no setting 'momentun'.*did you mean 'momentum'"):
        optim.SGD([{"params": [a], "momentun": 0.9}])
    with pytest.raises(InputError, match="finite lr"):
        optim.SGD([{"params": [a], "lr": -1.0}])
    with pytest.raises(InputError, match="parameter group 0: '0' is a ndarray"):
        optim.SGD([{"params": [np.zeros(3)]}])
    with pytest.raises(InputError, match="nesterov"):
        optim.SGD([{"params": [a], "nesterov": True}])


def test_a_refused_setting_leaves_the_old_one() -> None:
    group = optim.SGD([vector(1)], lr=0.1, momentum=0.9, nesterov=True).param_groups[0]
    for key, value in [("lr", float("nan")), ("momentum", 0.0), ("betas", (0.9, 0.9)), ("params", [])]:
        with pytest.raises(InputError):
            group[key] = value
    with pytest.raises(InputError):
        del group["lr"]
    assert {key: group[key] for key in group if key != "params"} == {
        "lr": 0.1,
        "momentum": 0.9,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": True,
        "maximize": False,
    }
    assert len(group) == 7 and "momentum=0.9" in repr(group)
    with pytest.raises(KeyError):
        group["betas"]
