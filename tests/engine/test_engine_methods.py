"""The methods and functions that stand on the operations: as in PyTorch, and clear where they refuse."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from engine_calls import FUNCTIONS, METHODS
from hypothesis import given, settings
from hypothesis import strategies as st

import ddp_bp as ddp
from ddp_bp.engine import functional_arrays, gradcheck
from ddp_bp.engine.axis_methods import AxisMethods
from ddp_bp.engine.methods import ElementwiseMethods
from ddp_bp.errors import DtypeError, InputError, ShapeError

CALLS = [
    pytest.param(call, id=f"{name}-{position}")
    for name, calls in {**METHODS, **FUNCTIONS}.items()
    for position, call in enumerate(calls)
]


def data(dtype: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.standard_normal((2, 3, 4)).astype(dtype), rng.standard_normal((3, 4)).astype(dtype)]


def test_every_method_and_function_is_called() -> None:
    methods = {name for kind in (ElementwiseMethods, AxisMethods) for name in vars(kind) if not name.startswith("_")}
    assert methods <= set(METHODS)
    functions = {name for name, value in vars(functional_arrays).items() if inspect.isfunction(value)}
    assert {name for name in functions if not name.startswith("_")} - {"apply", "explained"} <= set(FUNCTIONS)


@pytest.mark.parametrize("call", CALLS)
def test_gradients_match_central_differences(call: Any) -> None:
    x, y = (ddp.tensor(array, requires_grad=True) for array in data(np.float64))
    result = call(ddp, x, y)
    # The deviation of equal elements is a kink: there, PyTorch's choice of 0 is tested below.
    if result.requires_grad and np.any(result.numpy() != 0):
        gradcheck(lambda *inputs: call(ddp, *inputs), x, y)


@pytest.mark.parity
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-5)])
@pytest.mark.parametrize("call", CALLS)
def test_as_in_pytorch(call: Any, dtype: Any, tolerance: float) -> None:
    torch = pytest.importorskip("torch")
    close = {"rtol": tolerance, "atol": tolerance}
    ours = [ddp.tensor(array, requires_grad=True) for array in data(dtype)]
    theirs = [torch.tensor(array, requires_grad=True) for array in data(dtype)]
    output, expected = call(ddp, *ours), call(torch, *theirs)
    assert output.shape == expected.shape
    assert str(expected.dtype) == f"torch.{output.dtype}"
    np.testing.assert_allclose(output.numpy(), expected.detach().numpy(), **close)
    if not output.requires_grad:
        return
    gradient = np.random.default_rng(0).standard_normal(output.shape).astype(output.dtype)
    output.backward(np.asarray(gradient))
    expected.backward(torch.tensor(gradient))
    for our, their in zip(ours, theirs, strict=True):
        found = np.zeros(our.shape) if our.grad is None else our.grad
        wanted = np.zeros(our.shape) if their.grad is None else their.grad.numpy()
        np.testing.assert_allclose(found, wanted, **close)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.clamp(), "clip got neither"),
        (lambda x: (x > 0).clamp(max=1), "clip got booleans"),
        (lambda x: x.squeeze(3), r"squeeze got axis 3 for shape \(2, 3, 4\); it takes \[-3, 3\)"),
        (lambda x: x.unsqueeze(4), r"unsqueeze got axis 4 .* \[-4, 4\)"),
        (lambda x: x.view(5, 5), "reshape got"),
        (lambda x: x.t(), r"t got shape \(2, 3, 4\)"),
        (lambda x: x[0, 0].mT, r"mT got shape \(4,\)"),
        (lambda x: x.movedim(0, 3), "movedim got axis 3"),
        (lambda x: x.flip(5), "flip got axis 5"),
        (lambda x: x.expand(2, 3), r"expand got"),
        (lambda x: x.expand(-1, 2, 3, 4), r"expand got"),
        (lambda x: x.narrow(0, 1, 2), r"narrow got elements 1 to 3 of axis 0"),
        (lambda x: x.split(0), "split got size 0"),
        (lambda x: x.split([1, 1], dim=2), r"split got sizes \[1, 1\] for axis 2"),
        (lambda x: x.chunk(0), "chunk got 0"),
        (lambda x: x.sum().unbind(), "unbind got"),
        (lambda x: x.unbind(3), "unbind got axis 3"),
        (lambda x: x.select(0, 2), "getitem got"),
        (lambda x: x.index_select(0, ddp.tensor([0.5])), "index_select got"),
        (lambda x: x.max(3), "argmax got"),
        (lambda x: x & x, "bitwise_and got"),
        (lambda x: x.size(3), "size got axis 3"),
        (lambda x: ddp.cat([]), "cat got no tensors"),
        (lambda x: ddp.stack([]), "stack got no tensors"),
        (lambda x: ddp.einsum("->"), "einsum got no operands"),
        (lambda x: ddp.broadcast_tensors(x, x[:, :2]), "broadcast_tensors got shapes"),
        (lambda x: ddp.nn.functional.pad(x, (1,)), "pad got 1 widths"),
        (lambda x: ddp.nn.functional.pad(x, (0,) * 8), "pad got 8 widths"),
        (lambda x: ddp.nn.functional.pad(x, (4, 0), "reflect"), r"pad got widths 4 and 0 .* it takes \[0, 3\]"),
        (lambda x: ddp.nn.functional.pad(x, (5, 0), "circular"), r"it takes \[0, 4\]"),
        (lambda x: ddp.nn.functional.pad(x[:, :, :0], (1, 0), "replicate"), r"it takes \[0, 0\]"),
    ],
)
def test_what_is_refused_is_named(call: Any, message: str) -> None:
    with pytest.raises((ShapeError, DtypeError), match=message):
        call(ddp.tensor(np.ones((2, 3, 4))))


@pytest.mark.parity
@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(["reflect", "replicate", "circular"]),
    sides=st.lists(st.integers(1, 3), min_size=2, max_size=2),
    widths=st.lists(st.integers(0, 3), min_size=4, max_size=4),
)
def test_pad_at_any_width(mode: str, sides: list[int], widths: list[int]) -> None:
    torch = pytest.importorskip("torch")
    longest = {"reflect": -1, "circular": 0, "replicate": 9}[mode]
    widths = [min(width, sides[1 - k // 2] + longest) for k, width in enumerate(widths)]
    array = np.random.default_rng(0).standard_normal((1, 2, *sides))
    x, t = ddp.tensor(array, requires_grad=True), torch.tensor(array, requires_grad=True)
    ddp.gradcheck(lambda x: ddp.nn.functional.pad(x, widths, mode), x)
    output, expected = ddp.nn.functional.pad(x, widths, mode), torch.nn.functional.pad(t, widths, mode)
    np.testing.assert_array_equal(output.numpy(), expected.detach().numpy())
    output.square().sum().backward()
    expected.square().sum().backward()
    np.testing.assert_allclose(x.grad, t.grad.numpy(), rtol=1e-10)


def test_options_of_pad_are_checked() -> None:
    with pytest.raises(InputError, match="'mirror'"):
        ddp.nn.functional.pad(ddp.tensor([1.0]), (1, 1), "mirror")
    with pytest.raises(InputError, match="value"):
        ddp.nn.functional.pad(ddp.tensor([1.0]), (1, 1), "replicate", 3.0)


def test_infinite_and_empty_log_sums() -> None:
    rows = ddp.tensor([[-np.inf, -np.inf], [-np.inf, 3.0]], requires_grad=True)
    sums = rows.logsumexp(1)
    np.testing.assert_array_equal(sums.numpy(), [-np.inf, 3])
    sums.sum().backward()
    np.testing.assert_array_equal(rows.grad, [[0, 0], [0, 1]])
    assert ddp.tensor([0.0, np.inf, -np.inf]).logsumexp(0).item() == np.inf
    np.testing.assert_array_equal(ddp.tensor(np.ones((2, 0))).logsumexp(1).numpy(), [-np.inf, -np.inf])


def test_a_split_is_a_view_and_its_parts_add_up() -> None:
    x = ddp.tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    left, right = x.split([1, 2], dim=1)
    assert np.shares_memory(left.numpy(), x.numpy())
    (left.sum() * 2 + right.sum() * 3).backward()
    np.testing.assert_array_equal(x.grad, [[2, 3, 3], [2, 3, 3]])


def test_an_index_with_repeats_adds_up_in_the_same_bits_wherever_the_memory_starts() -> None:
    rng = np.random.default_rng(0)
    index, gradient = rng.integers(0, 50, 4000), rng.standard_normal((4000, 7)).astype(np.float32)
    found = []
    for shift in range(3):
        memory = np.empty(gradient.size + shift, np.float32)
        moved = memory[shift:].reshape(gradient.shape)
        moved[...] = gradient
        table = ddp.tensor(np.zeros((50, 7), np.float32), requires_grad=True)
        table[index].backward(moved)
        found.append(table.grad)
    expected = np.zeros((50, 7))
    np.add.at(expected, index, gradient)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
