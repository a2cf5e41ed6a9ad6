"""Watching operations: what is recorded of each, and that nothing else changes."""

from __future__ import annotations

import threading
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from engine_all_cases import CASES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddp_bp.engine import OPERATIONS, Parameter, Tensor, no_grad, tensor
from ddp_bp.engine.functional import linear
from ddp_bp.engine.graph import Node
from ddp_bp.engine.ops.flops import count_flops
from ddp_bp.engine.profiling import Recorder, recording_calls
from ddp_bp.engine.record import watching
from ddp_bp.engine.tensor import apply
from ddp_bp.errors import ShapeError


def ones(*shape: int, requires_grad: bool = False) -> Tensor:
    return tensor(np.ones(shape, np.float32), requires_grad)


def run(name: str, arrays: list[np.ndarray], constant: tuple[int, ...], options: tuple[Any, ...]) -> list[np.ndarray]:
    """The output, and the gradients of the floating inputs."""
    inputs = tuple(
        Tensor(array.copy(), requires_grad=array.dtype.kind == "f" and position not in constant)
        for position, array in enumerate(arrays)
    )
    output = apply(OPERATIONS[name], inputs, options)
    if output.requires_grad:
        output.backward(np.ones(output.shape, output.dtype))
    return [output.numpy(), *(value.grad for value in inputs if value.grad is not None)]


@pytest.mark.parametrize("name", sorted(OPERATIONS))
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_operation_is_recorded_and_gives_the_same_bits(name: str, data: st.DataObject) -> None:
    case = CASES[name]
    arrays, options = data.draw(case.drawn)
    plain = run(name, arrays, case.constant, options)
    recorder = Recorder({})
    with recording_calls(recorder):
        watched = run(name, arrays, case.constant, options)
    for before, after in zip(plain, watched, strict=True):
        assert before.dtype == after.dtype
        assert before.tobytes() == after.tobytes()
    (call,) = recorder.calls
    assert (call.operation, call.shape, call.dtype) == (name, plain[0].shape, str(plain[0].dtype))
    assert [source.shape for source in call.inputs] == [array.shape for array in arrays]
    assert call.forward[0] <= call.forward[1]
    flops, gradient_flops = count_flops(OPERATIONS[name], tuple(a.shape for a in arrays), plain[0].shape, options)
    assert call.forward_flops == flops >= 0
    assert len(gradient_flops) == len(arrays), "one number for the gradient of each input"
    assert all(isinstance(count, int) and count >= 0 for count in (flops, *gradient_flops))
    assert sum(call.gradients) == len(plain) - 1
    assert call.backward_flops == sum(count for count, on in zip(gradient_flops, call.gradients, strict=False) if on)


@pytest.mark.parametrize(
    ("a", "b", "product"),
    [
        ((4, 3), (3, 5), 2 * 4 * 3 * 5),
        ((7, 4, 3), (3, 5), 2 * 7 * 4 * 3 * 5),
        ((7, 1, 4, 3), (2, 3, 5), 2 * 7 * 2 * 4 * 3 * 5),
        ((3,), (3,), 2 * 3),
        ((4, 3), (3,), 2 * 4 * 3),
        ((0, 3), (3, 5), 0),
    ],
)
def test_flops_of_matmul_by_hand(a: tuple[int, ...], b: tuple[int, ...], product: int) -> None:
    recorder = Recorder({})
    with recording_calls(recorder):
        output = ones(*a, requires_grad=True) @ ones(*b, requires_grad=True)
        output.backward(np.ones(output.shape, np.float32))
    assert recorder.calls[0].forward_flops == product
    assert recorder.calls[0].backward_flops == 2 * product


@pytest.mark.parametrize("input_needs", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_flops_and_bytes_of_linear_count_only_the_gradients_that_were_computed(
    input_needs: bool, has_bias: bool
) -> None:
    a = ones(2, 4, 3, requires_grad=input_needs)
    weight = ones(5, 3, requires_grad=True)
    bias = ones(5, requires_grad=True) if has_bias else None
    recorder = Recorder({})
    with recording_calls(recorder):
        output = linear(a, weight, bias)
        output.backward(np.ones(output.shape, np.float32))
    (call,) = recorder.calls
    product, num_outputs = 2 * 8 * 3 * 5, 8 * 5
    assert call.forward_flops == product + has_bias * num_outputs
    assert call.backward_flops == (1 + input_needs) * product + has_bias * num_outputs
    assert call.gradients == (input_needs, True, True)[: 2 + has_bias]
    in_bytes, weight_bytes, bias_bytes, out_bytes = 4 * 24, 4 * 15, 4 * 5 * has_bias, 4 * 40
    assert call.forward_bytes == in_bytes + weight_bytes + bias_bytes + out_bytes
    computed_bytes = input_needs * in_bytes + weight_bytes + bias_bytes
    assert call.backward_bytes == out_bytes + (in_bytes + weight_bytes) + computed_bytes


def test_elementwise_operations_count_elements_and_views_nothing() -> None:
    recorder = Recorder({})
    with recording_calls(recorder):
        a = ones(4, 3, requires_grad=True)
        total = (a.reshape(12)[2:] + 1).sum()
        total.backward()
    counted = [(call.operation, call.forward_flops, call.backward_flops) for call in recorder.calls]
    assert counted == [("reshape", 0, 0), ("getitem", 0, 0), ("add", 10, 10), ("sum", 10, 10)]
    assert recorder.calls[0].forward_bytes == recorder.calls[0].backward_bytes == 0


def test_sources_are_calls_named_tensors_or_data() -> None:
    weight = Parameter(np.ones((5, 3), np.float32))
    data = ones(4, 3)
    recorder = Recorder({id(weight): "layer.weight"})
    with recording_calls(recorder):
        hidden = linear(data, weight)
        output = hidden * hidden
    assert [(source.call, source.name) for source in recorder.calls[0].inputs] == [(None, None), (None, "layer.weight")]
    assert [(source.call, source.name) for source in recorder.calls[1].inputs] == [(0, None), (0, None)]
    assert output.requires_grad


def test_calls_of_another_recorder_are_data() -> None:
    first, second = Recorder({}), Recorder({})
    with recording_calls(first):
        a = ones(3, requires_grad=True) * 2
    with recording_calls(second):
        (a * 2).sum().backward()
    assert second.calls[0].inputs[0].call is None
    assert [len(call.backward) for call in [*first.calls, *second.calls]] == [1, 1, 1], "backward reaches them all"


def test_changes_in_place_are_recorded() -> None:
    recorder = Recorder({})
    b = ones(3, requires_grad=True)
    with recording_calls(recorder):
        a = ones(3) * b
        a += b
        a.sum().backward()
    assert [call.operation for call in recorder.calls] == ["mul", "add", "sum"]
    assert [source.call for source in recorder.calls[1].inputs] == [0, None]
    assert [source.call for source in recorder.calls[2].inputs] == [1]
    assert b.grad is not None
    assert b.grad.tolist() == [2, 2, 2]


def test_a_retained_graph_is_timed_each_time() -> None:
    recorder = Recorder({})
    with recording_calls(recorder):
        total = ones(3, requires_grad=True).sum()
        total.backward(retain_graph=True)
        total.backward()
    assert len(recorder.calls[0].backward) == 2
    assert recorder.calls[0].backward_flops == 6


def test_without_recording_of_gradients_there_is_no_backward() -> None:
    recorder = Recorder({})
    with recording_calls(recorder), no_grad():
        output = ones(3, requires_grad=True) * 2
    assert not output.requires_grad
    assert recorder.calls[0].backward == []
    assert recorder.calls[0].gradients == ()


def test_times_lie_in_order_within_the_block() -> None:
    recorder = Recorder({})
    began = perf_counter()
    with recording_calls(recorder):
        a = ones(100, 100, requires_grad=True)
        ((a @ a).tanh() * a).sum().backward()
    ended = perf_counter()
    forward = [time for call in recorder.calls for time in call.forward]
    backward = [time for call in reversed(recorder.calls) for span in call.backward for time in span]
    assert [began, *forward, *backward, ended] == sorted([began, *forward, *backward, ended])


def test_an_operation_that_refuses_its_inputs_says_so_and_is_not_recorded() -> None:
    recorder = Recorder({})
    with recording_calls(recorder):
        with pytest.raises(ShapeError, match=r"^add got \(2,\) float32, \(3,\) float32; it takes"):
            ones(2) + ones(3)
        output = ones(3, requires_grad=True) + 1
    assert [call.operation for call in recorder.calls] == ["add"]
    assert output.requires_grad


def test_nothing_is_left_behind() -> None:
    recorder = Recorder({})
    with pytest.raises(KeyError), recording_calls(recorder):
        raise KeyError
    assert watching.get() is None
    output = ones(3, requires_grad=True) * 2
    assert recorder.calls == []
    assert isinstance(output._node, Node)
    assert output._node.operation is OPERATIONS["mul"]


def test_another_thread_is_not_watched() -> None:
    recorder = Recorder({})
    with recording_calls(recorder):
        thread = threading.Thread(target=lambda: ones(3) + 1)
        thread.start()
        thread.join(10)
    assert recorder.calls == []
