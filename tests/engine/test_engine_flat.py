"""All parameters and all gradients as one vector each."""

from __future__ import annotations

import copy
import itertools
import weakref

import numpy as np
import pytest

import ddp_bp as ddp
from ddp_bp.engine import FlatParameters, Parameter
from ddp_bp.engine.functional import linear
from ddp_bp.errors import DtypeError, GraphError, InputError, ShapeError


def named() -> list[tuple[str, Parameter]]:
    rng = np.random.default_rng(0)
    shapes = {"weight": (2, 3), "bias": (2,), "scale": (), "unused": (4,), "empty": (0, 3)}
    return [(name, Parameter(np.asarray(rng.standard_normal(shape)))) for name, shape in shapes.items()]


def loss(parameters: dict[str, Parameter], factor: float = 1.0) -> ddp.Tensor:
    data = ddp.tensor(np.arange(12.0).reshape(4, 3))
    return (linear(data, parameters["weight"], parameters["bias"]) * parameters["scale"]).sum() * factor


def expected_gradient(factor: float = 1.0) -> np.ndarray:
    parameters = dict(named())
    loss(parameters, factor).backward()
    parts = [np.zeros(p.shape) if p.grad is None else p.grad for p in parameters.values()]
    return np.concatenate([part.ravel() for part in parts])


def test_parameters_become_views_and_keep_their_values() -> None:
    parameters = named()
    before = [parameter.numpy().copy() for _, parameter in parameters]
    flat = FlatParameters(parameters)
    assert flat.size == 13 and flat.dtype == np.float64 and flat.data.shape == (13,)
    assert [tuple(slot) for slot in flat.slots] == [
        ("weight", (2, 3), 0, 6),
        ("bias", (2,), 6, 2),
        ("scale", (), 8, 1),
        ("unused", (4,), 9, 4),
        ("empty", (0, 3), 13, 0),
    ]
    for (_, parameter), value in zip(parameters, before, strict=True):
        np.testing.assert_array_equal(parameter.numpy(), value)
    flat.data[:] = np.arange(13.0)
    assert parameters[1][1].tolist() == [6.0, 7.0]
    assert flat.arrays()["scale"].tolist() == 8.0


def test_the_gradient_is_written_into_the_bound_buffer() -> None:
    parameters = named()
    flat = FlatParameters(parameters)
    for buffer in (np.full(13, np.nan), np.full(13, np.nan)):
        flat.bind_gradient(buffer)
        assert all(parameter.grad is None for _, parameter in parameters)
        loss(dict(parameters)).backward()
        assert np.isnan(buffer[9:]).all()
        assert flat.finish_gradient() is buffer
        np.testing.assert_allclose(buffer, expected_gradient())
        assert parameters[0][1].grad is not None
        assert np.shares_memory(parameters[0][1].grad, buffer)


def test_buffers_in_rotation_do_not_mix() -> None:
    parameters = named()
    flat = FlatParameters(parameters)
    buffers = [np.full(13, np.nan) for _ in range(3)]
    for turn, buffer in zip(range(7), itertools.cycle(buffers), strict=False):
        flat.bind_gradient(buffer)
        loss(dict(parameters), factor=turn + 1.0).backward()
        flat.finish_gradient()
    for buffer, factor in zip(buffers, (7.0, 5.0, 6.0), strict=True):
        np.testing.assert_allclose(buffer, expected_gradient(factor))


def test_more_buffers_than_are_cached() -> None:
    parameters = named()
    flat = FlatParameters(parameters)
    for buffer in [np.full(13, np.nan) for _ in range(40)]:
        flat.bind_gradient(buffer)
        loss(dict(parameters)).backward()
        np.testing.assert_allclose(flat.finish_gradient(), expected_gradient())


def test_buffers_that_are_forgotten_are_given_back() -> None:
    parameters = named()
    flat = FlatParameters(parameters)
    buffer, last = np.zeros(13), np.zeros(13)
    left = weakref.ref(buffer)
    flat.bind_gradient(buffer)
    flat.bind_gradient(last)
    del buffer
    assert left() is not None
    flat.forget_buffers()
    assert left() is None
    loss(dict(parameters)).backward()
    assert flat.finish_gradient() is last


def test_gradients_add_up_in_a_plain_script_and_reset_cheaply() -> None:
    parameters = named()
    flat = FlatParameters(parameters)
    loss(dict(parameters)).backward()
    loss(dict(parameters)).backward()
    np.testing.assert_allclose(flat.finish_gradient(), 2 * expected_gradient())
    flat.zero_grad()
    assert all(parameter.grad is None for _, parameter in parameters)
    loss(dict(parameters)).backward()
    np.testing.assert_allclose(flat.finish_gradient(), expected_gradient())


def test_gradients_that_were_there_before_or_set_by_hand_count() -> None:
    parameters = named()
    loss(dict(parameters)).backward()
    flat = FlatParameters(parameters)
    np.testing.assert_allclose(flat.finish_gradient(), expected_gradient())
    parameters[1][1].grad = np.array([5.0, 6.0])
    np.testing.assert_allclose(flat.finish_gradient()[6:8], [5.0, 6.0])


def test_the_first_contribution_needs_no_new_array() -> None:
    weight = Parameter(np.ones((3, 2)))
    flat = FlatParameters([("weight", weight)])
    linear(ddp.tensor(np.ones((4, 2))), weight).sum().backward()
    assert weight.grad is not None and weight.grad.base is flat.gradient
    assert flat.gradient.tolist() == [4.0] * 6


def test_tied_parameters_have_one_slot_and_one_gradient() -> None:
    weight = Parameter(np.ones((2, 2)))
    flat = FlatParameters([("encoder", weight), ("decoder", weight)])
    assert [slot.name for slot in flat.slots] == ["encoder"]
    data = ddp.tensor(np.ones((1, 2)))
    linear(linear(data, weight), weight).sum().backward()
    np.testing.assert_allclose(flat.finish_gradient(), [4.0] * 4)


def test_a_parameter_that_is_both_factors_of_a_product() -> None:
    values = np.random.default_rng(3).standard_normal((3, 3))
    weight = Parameter(values.copy())
    flat = FlatParameters([("weight", weight)])
    flat.bind_gradient(np.full(9, np.nan))
    outer = np.arange(9.0).reshape(3, 3)
    (linear(weight, weight) * ddp.tensor(outer)).sum().backward()
    # Of sum(outer * (w @ w.T)).
    np.testing.assert_allclose(flat.finish_gradient().reshape(3, 3), (outer + outer.T) @ values)


def test_a_frozen_parameter_has_a_zero_gradient() -> None:
    parameters = dict(named())
    parameters["bias"].requires_grad_(False)
    flat = FlatParameters(parameters.items())
    flat.bind_gradient(np.full(13, np.nan))
    loss(parameters).backward()
    assert flat.finish_gradient()[6:8].tolist() == [0.0, 0.0]


def test_writing_to_the_data_is_found_out_by_backward() -> None:
    parameters = dict(named())
    flat = FlatParameters(parameters.items())
    value = loss(parameters)
    flat.data += 1
    flat.mark_changed()
    with pytest.raises(GraphError, match="changed in place"):
        value.backward()
    loss(parameters).backward()


def test_a_storage_is_used_and_flat_parameters_stay_where_they_are() -> None:
    parameters = named()
    first = FlatParameters(parameters)
    again = FlatParameters(parameter for _, parameter in parameters)
    assert again.data is first.data
    loss(dict(parameters)).backward()
    np.testing.assert_allclose(again.finish_gradient(), expected_gradient())
    values = first.data.copy()
    storage = np.full(13, np.nan)
    moved = FlatParameters(parameters, storage)
    assert moved.data is storage
    np.testing.assert_array_equal(storage, values)
    assert np.shares_memory(parameters[0][1].numpy(), storage)
    subset = FlatParameters(parameters[:2])
    assert subset.data is not storage and subset.size == 8


def test_a_deep_copy_of_a_parameter_leaves_the_vector() -> None:
    parameters = named()
    flat = FlatParameters(parameters)
    twin = copy.deepcopy(parameters[0][1])
    flat.data[:] = 0
    assert isinstance(twin, Parameter) and twin.numpy().any()
    assert FlatParameters([twin]).size == 6


def test_what_cannot_be_flattened_is_refused() -> None:
    single, double = Parameter(np.ones(2, np.float32)), Parameter(np.ones(2))
    with pytest.raises(DtypeError, match=r"'b' is float64 and 'a' is float32"):
        FlatParameters([("a", single), ("b", double)])
    with pytest.raises(InputError, match="no parameters"):
        FlatParameters([])
    with pytest.raises(InputError, match="'x' is a Tensor"):
        FlatParameters([("x", ddp.tensor([1.0]))])  # type: ignore[list-item]
    with pytest.raises(DtypeError, match="storage"):
        FlatParameters([double], np.zeros(2, np.float32))
    with pytest.raises(ShapeError, match="storage"):
        FlatParameters([double], np.zeros(3))
    flat = FlatParameters([double])
    with pytest.raises(ShapeError, match="gradient buffer"):
        flat.bind_gradient(np.zeros(4)[::2])
    assert double.tolist() == [1.0, 1.0]


def test_users_of_the_same_parameters_agree_on_one_vector() -> None:
    parameters = named()
    flat = FlatParameters(parameters)
    assert FlatParameters.of(flat) is flat
    again = FlatParameters.of(parameters[::-1])
    assert again.data is flat.data and again.slots == flat.slots
    assert flat.is_home() and again.is_home()
    part = FlatParameters.of(parameters[:2])
    assert part.data is not flat.data and part.is_home() and not flat.is_home()
    with pytest.raises(InputError, match="Somebody: its parameters have moved"):
        flat.check_home("Somebody")
    anew = FlatParameters.of(parameters[::-1])
    assert [slot.name for slot in anew.slots] == [name for name, _ in parameters[::-1]]


def test_parameters_are_reported_as_soon_as_their_gradient_is_final() -> None:
    """Each once: one that is used twice after its second use, and at the beginning those that receive nothing."""
    rng = np.random.default_rng(0)
    sizes = {"first": 3, "unused": 2, "twice": 3, "frozen": 3, "last": 3, "dead": 3}
    parameters = {name: Parameter(rng.standard_normal(size)) for name, size in sizes.items()}
    parameters["frozen"].requires_grad = False
    flat = FlatParameters(parameters.items())
    names = {(slot.offset, slot.offset + slot.size): slot.name for slot in flat.slots}
    seen: list[str] = []
    values: dict[str, np.ndarray] = {}

    def report(lo: int, hi: int) -> None:
        seen.append(names[lo, hi])
        values[names[lo, hi]] = buffer[lo:hi].copy()

    def result() -> ddp.Tensor:
        p = parameters
        return (((p["first"] * p["twice"]) * p["frozen"]).tanh() * p["last"] * p["twice"]).sum()

    for _ in range(2):
        buffer = np.full(flat.size, np.nan)
        flat.bind_gradient(buffer)
        seen.clear()
        with flat.reporting(report):
            result().backward()
        assert sorted(seen[:3]) == ["dead", "frozen", "unused"]
        assert seen[3:] in (["last", "first", "twice"], ["last", "twice", "first"])
        assert flat.finish_gradient() is buffer
        for (lo, hi), name in names.items():
            np.testing.assert_array_equal(values[name], buffer[lo:hi])
    seen.clear()
    result().backward()
    assert seen == []
