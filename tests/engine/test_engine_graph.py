"""The recorded graph: what backward gives, what it refuses, and what it leaves behind."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

import ddp_bp as ddp
from ddp_bp.engine import is_grad_enabled
from ddp_bp.engine.functional import concatenate, linear
from ddp_bp.engine.ops import arithmetic
from ddp_bp.engine.ops.operation import Operation
from ddp_bp.engine.tensor import apply
from ddp_bp.errors import DtypeError, GraphError, ShapeError


def test_a_value_used_twice_gets_both_gradients() -> None:
    x = ddp.tensor([2.0, 3.0], requires_grad=True)
    y = x * x
    (y * x + y).sum().backward()
    np.testing.assert_allclose(x.grad, 3 * np.array([4.0, 9.0]) + 2 * np.array([2.0, 3.0]))


def test_a_value_used_many_times_is_passed_on_once() -> None:
    calls = []

    def vjp(gradient: np.ndarray, saved: None, needs: tuple[bool, ...]) -> tuple[np.ndarray]:
        calls.append(gradient.copy())
        return (gradient,)

    same = Operation("same", lambda a: (a.copy(), None), vjp, "one array")
    x = ddp.tensor([1.0], requires_grad=True)
    y = apply(same, (x,))
    (y + y * 2 + y * 3 + y * 4).sum().backward()
    assert [call.tolist() for call in calls] == [[10.0]]
    assert x.grad is not None and x.grad.tolist() == [10.0]


def test_gradients_add_up_over_backward_calls_and_can_be_reset() -> None:
    x = ddp.tensor([1.0, 2.0], requires_grad=True)
    x.sum().backward()
    (2 * x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [3.0, 3.0]
    x.grad = None
    x.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


def test_the_same_array_returned_for_two_inputs_is_not_shared_by_their_gradients() -> None:
    a, b = (ddp.tensor([1.0, 1.0], requires_grad=True) for _ in range(2))
    (a + b).backward(np.array([1.0, 2.0]))
    assert a.grad is not None and b.grad is not None
    a.grad[0] = 9.0
    assert b.grad.tolist() == [1.0, 2.0]


def test_a_given_gradient_is_not_kept_as_the_gradient() -> None:
    x = ddp.tensor([1.0, 1.0], requires_grad=True)
    gradient = np.array([1.0, 2.0], np.float32)
    x.backward(gradient)
    gradient[0] = 7.0
    assert x.grad is not None and x.grad.tolist() == [1.0, 2.0]


def test_mixed_precision_gives_each_input_a_gradient_of_its_dtype() -> None:
    a = ddp.tensor(np.ones(3, np.float32), requires_grad=True)
    b = ddp.tensor(np.ones(3, np.float64), requires_grad=True)
    (a * b).sum().backward()
    assert a.grad is not None and a.grad.dtype == np.float32
    assert b.grad is not None and b.grad.dtype == np.float64


def test_backward_of_a_non_scalar_asks_for_a_gradient() -> None:
    x = ddp.tensor([[1.0, 2.0]], requires_grad=True)
    with pytest.raises(GraphError, match=r"shape \(1, 2\) needs a gradient of that shape"):
        (x * 2).backward()
    with pytest.raises(ShapeError, match=r"gradient of shape \(2,\) for a value of shape \(1, 2\)"):
        (x * 2).backward(np.ones(2))
    (x * 2).backward(np.ones((1, 2)))
    assert x.grad is not None and x.grad.tolist() == [[2.0, 2.0]]


def test_backward_without_a_graph_says_so() -> None:
    with pytest.raises(GraphError, match="depends on no tensor with requires_grad=True"):
        ddp.tensor(1.0).backward()
    x = ddp.tensor(1.0, requires_grad=True)
    with ddp.no_grad():
        y = x * 2
    with pytest.raises(GraphError, match="no_grad"):
        y.backward()


def test_a_graph_can_be_used_once_unless_retained() -> None:
    x = ddp.tensor([1.0, 2.0], requires_grad=True)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad is not None and x.grad.tolist() == [4.0, 8.0]
    with pytest.raises(GraphError, match=r"reached sum, which an earlier backward has freed.*retain_graph=True"):
        y.backward()


def test_a_shared_part_that_was_freed_is_named() -> None:
    x = ddp.tensor([1.0, 2.0], requires_grad=True)
    shared = x.exp()
    shared.sum().backward()
    with pytest.raises(GraphError, match="reached exp, which an earlier backward has freed"):
        (shared * 2).sum().backward()


def test_backward_frees_what_was_saved() -> None:
    x = ddp.tensor(np.ones(10), requires_grad=True)
    hidden = x.exp()
    saved = weakref.ref(hidden._array)
    loss = (hidden * hidden).sum()
    del hidden
    assert saved() is not None
    loss.backward()
    assert saved() is None


def test_detach_shares_memory_and_cuts_the_history() -> None:
    x = ddp.tensor([1.0, 2.0], requires_grad=True)
    y = (x * 2).detach()
    assert not y.requires_grad and y.is_leaf
    (x * y).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2.0, 4.0]
    assert np.shares_memory(x.detach()._array, x._array)


def test_no_grad_is_a_block_and_a_decorator_and_belongs_to_its_thread() -> None:
    x = ddp.tensor(1.0, requires_grad=True)

    @ddp.no_grad()
    def double() -> ddp.Tensor:
        return x * 2

    assert not double().requires_grad
    assert not double().requires_grad
    elsewhere: list[bool] = []
    with ddp.no_grad():
        assert not is_grad_enabled()
        thread = threading.Thread(target=lambda: elsewhere.append((x * 2).requires_grad))
        thread.start()
        thread.join(10)
    assert elsewhere == [True]
    assert is_grad_enabled()
    with pytest.raises(ValueError, match="inside"), ddp.no_grad():
        raise ValueError("inside")
    assert is_grad_enabled()


def test_the_input_of_the_first_layer_gets_no_gradient_computed() -> None:
    asked: list[tuple[bool, ...]] = []

    def vjp(gradient: np.ndarray, saved: object, needs: tuple[bool, ...]) -> tuple[np.ndarray | None, ...]:
        asked.append(needs)
        assert arithmetic.MUL.vjp is not None
        return arithmetic.MUL.vjp(gradient, saved, needs)

    spied = Operation("spied", arithmetic.MUL.forward, vjp, "two arrays")
    data, weight = ddp.tensor([1.0, 2.0]), ddp.tensor([3.0, 4.0], requires_grad=True)
    apply(spied, (data, weight)).sum().backward()
    assert asked == [(False, True)]
    assert data.grad is None


def test_a_deep_graph_needs_no_deep_stack() -> None:
    # In a process and a thread of its own: overflowing the C stack would end the interpreter.
    script = """
import threading, ddp_bp as ddp
def run():
    x = ddp.tensor(1.0, requires_grad=True)
    y = x
    for _ in range(100_000):
        y = y + 1.0
    y.backward()
    assert x.grad == 1.0
    y = x
    for _ in range(100_000):
        y = y + 1.0
    del y  # freed without backward
    y = x
    for _ in range(100_000):
        y = y + 1.0
    y.backward(retain_graph=True)
    del y
    print("done")
threading.stack_size(256 * 1024)
thread = threading.Thread(target=run)
thread.start()
thread.join(60)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=90, check=False)
    assert result.stdout == "done\n", result.stderr


def test_graphs_are_freed_without_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        x = ddp.tensor([1.0], requires_grad=True)
        y = x.exp()
        gone = weakref.ref(y)
        array = weakref.ref(y._array)
        z = y.sum()
        del y, z
        assert gone() is None
        assert array() is None
    finally:
        gc.enable()


def test_one_parameter_in_two_places_of_one_operation() -> None:
    w = ddp.tensor(np.arange(9.0).reshape(3, 3), requires_grad=True)
    linear(w, w).sum().backward()
    value = w.numpy()
    ones = np.ones((3, 3))
    np.testing.assert_allclose(w.grad, ones @ value + ones.T @ value)


def test_joined_parts_get_their_own_gradients() -> None:
    a, b = ddp.tensor([1.0], requires_grad=True), ddp.tensor([2.0, 3.0])
    concatenate([a, b, a]).backward(np.array([1.0, 2.0, 3.0, 4.0]))
    assert a.grad is not None and a.grad.tolist() == [5.0]


def test_only_floating_leaves_can_require_a_gradient() -> None:
    with pytest.raises(DtypeError, match="int64"):
        ddp.tensor([1, 2], requires_grad=True)
    x = ddp.tensor([1.0], requires_grad=True)
    with pytest.raises(GraphError, match="detach"):
        (x * 2).requires_grad_(False)
    assert not x.requires_grad_(False).requires_grad
