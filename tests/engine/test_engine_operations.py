"""What holds for every operation in the table."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from engine_all_cases import CASES
from engine_cases import Case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddp_bp.engine import OPERATIONS, Tensor, gradcheck, no_grad
from ddp_bp.engine.ops.operation import Operation
from ddp_bp.engine.tensor import apply
from ddp_bp.errors import EngineError, GraphError

few = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
every_operation = pytest.mark.parametrize("name", sorted(OPERATIONS))
every_differentiable = pytest.mark.parametrize("name", sorted(n for n, o in OPERATIONS.items() if o.vjp is not None))


def is_differentiated(case: Case, position: int, array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and position not in case.constant


def tensors(case: Case, inputs: list[np.ndarray], dtype: Any = np.float64) -> tuple[Tensor, ...]:
    made = []
    for position, array in enumerate(inputs):
        differentiated = is_differentiated(case, position, array)
        # astype with order "K" keeps the layout, and a copy keeps the drawn array from being changed.
        made.append(Tensor(array.astype(dtype) if differentiated else array.copy(), requires_grad=differentiated))
    return tuple(made)


def run_vjp(operation: Operation, gradient: np.ndarray, saved: Any, needs: tuple[bool, ...]) -> Any:
    assert operation.vjp is not None
    if operation.writes:
        return operation.vjp(gradient, saved, needs, [None] * len(operation.writes))
    return operation.vjp(gradient, saved, needs)


def test_every_operation_has_a_case() -> None:
    assert set(CASES) == set(OPERATIONS)


def test_no_two_operations_share_a_name() -> None:
    assert all(name == operation.name for name, operation in OPERATIONS.items())


@every_differentiable
@few
@given(data=st.data())
def test_gradients_match_central_differences(name: str, data: st.DataObject) -> None:
    case = CASES[name]
    inputs, options = data.draw(case.drawn)
    gradcheck(lambda *values: apply(OPERATIONS[name], values, options), *tensors(case, inputs))


@every_operation
@few
@given(data=st.data())
def test_inputs_are_left_as_they_are(name: str, data: st.DataObject) -> None:
    operation, case = OPERATIONS[name], CASES[name]
    inputs, options = data.draw(case.drawn)
    before = [array.copy() for array in inputs]
    output, saved = operation.forward(*inputs, *options)
    if operation.vjp is not None:
        gradient = np.asarray(np.random.default_rng(0).standard_normal(np.shape(output)))
        gradient_before = gradient.copy()
        needs = tuple(is_differentiated(case, position, array) for position, array in enumerate(inputs))
        first = [None if g is None else np.array(g) for g in run_vjp(operation, gradient, saved, needs)]
        second = run_vjp(operation, gradient, saved, needs)
        np.testing.assert_array_equal(gradient, gradient_before)
        for one, other in zip(first, second, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                np.testing.assert_array_equal(one, other)
    for array, copy in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(array, copy)


@every_differentiable
@few
@given(data=st.data())
def test_only_what_is_needed_is_computed(name: str, data: st.DataObject) -> None:
    operation, case = OPERATIONS[name], CASES[name]
    inputs, options = data.draw(case.drawn)
    output, saved = operation.forward(*inputs, *options)
    gradient = np.ones(np.shape(output))
    possible = [(False, True) if is_differentiated(case, i, array) else (False,) for i, array in enumerate(inputs)]
    for needs in itertools.product(*possible):
        if not any(needs):
            continue
        results = run_vjp(operation, gradient, saved, needs)
        assert len(results) == len(inputs)
        for needed, result, array in zip(needs, results, inputs, strict=True):
            if not needed:
                assert result is None
            if needed:
                assert result is not None
                assert np.shape(result) == array.shape


@every_differentiable
@few
@given(data=st.data())
def test_a_value_changed_after_it_was_recorded_never_gives_a_wrong_gradient(name: str, data: st.DataObject) -> None:
    operation, case = OPERATIONS[name], CASES[name]
    inputs, options = data.draw(case.drawn)

    def gradients(changed: int | None) -> list[np.ndarray | None]:
        values = tensors(case, inputs)
        output = apply(operation, values, options)
        target = None if changed is None else (*values, output)[changed]
        if target is not None and target._array.flags.writeable:
            with no_grad():
                target.copy_(1 if target.dtype.kind == "b" else target * 0 + 1)
        output.backward(np.ones(output.shape), retain_graph=True)
        return [value.grad for value in values]

    if not any(is_differentiated(case, position, array) for position, array in enumerate(inputs)):
        return
    expected = gradients(None)
    for changed in range(len(inputs) + 1):
        try:
            found = gradients(changed)
        except GraphError as error:
            assert operation.name in str(error) and "changed in place" in str(error)
            continue
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)  # type: ignore[arg-type]


@every_operation
@few
@given(data=st.data())
def test_single_precision_stays_single(name: str, data: st.DataObject) -> None:
    operation, case = OPERATIONS[name], CASES[name]
    inputs, options = data.draw(case.drawn)
    if name == "cast":
        options = (np.dtype(np.float32),)
    values = tensors(case, inputs, np.float32)
    output = apply(operation, values, options)
    assert output.dtype in (np.float32, np.bool_, np.int64)
    if output.requires_grad:
        output.backward(np.ones(output.shape))
        for value in values:
            assert value.grad is None or value.grad.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "position"), [(name, i) for name, case in sorted(CASES.items()) for i in range(len(case.refused))]
)
def test_what_is_refused_is_named(name: str, position: int) -> None:
    inputs, options = CASES[name].refused[position]
    with pytest.raises(EngineError) as caught:
        apply(OPERATIONS[name], tuple(Tensor(array) for array in inputs), options)
    message = str(caught.value)
    assert message.startswith(f"{name} got ")
    assert "it takes " in message or "give both the same dtype" in message


def test_every_operation_refuses_something() -> None:
    assert [name for name, case in CASES.items() if not case.refused] == []


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-5)])
@every_operation
def test_agrees_with_pytorch(name: str, dtype: Any, tolerance: float) -> None:
    torch = pytest.importorskip("torch")
    operation, case = OPERATIONS[name], CASES[name]

    @few
    @given(data=st.data())
    def agrees(data: st.DataObject) -> None:
        inputs, options = data.draw(case.drawn)
        ours = tensors(case, inputs, dtype)
        theirs = [torch.tensor(v.numpy().copy(), requires_grad=v.requires_grad) for v in ours]
        output = apply(operation, ours, options)
        expected = case.torch(torch, *theirs, *options)
        close = {"rtol": tolerance, "atol": tolerance}
        np.testing.assert_allclose(output.numpy(), expected.detach().numpy(), **close)
        if not output.requires_grad:
            return
        gradient = np.random.default_rng(0).standard_normal(output.shape).astype(dtype)
        output.backward(np.asarray(gradient))
        expected.backward(torch.tensor(gradient, dtype=expected.dtype))
        for our, their in zip(ours, theirs, strict=True):
            if our.requires_grad:
                found = np.zeros(our.shape) if our.grad is None else our.grad
                wanted = np.zeros(our.shape) if their.grad is None else their.grad.numpy()
                np.testing.assert_allclose(found, wanted, **close)

    agrees()
