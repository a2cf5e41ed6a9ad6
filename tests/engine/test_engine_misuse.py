"""Whatever operations, functions and methods are given, they work or say who objects to what."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from engine_all_cases import CASES
from engine_misuse_cases import JOINING, METHODS, NONSENSE, TAKEN, X, floats, whole
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ddp_bp as ddp
from ddp_bp.engine.misuse import explained, number
from ddp_bp.engine.ops import OPERATIONS
from ddp_bp.engine.tensor import Tensor, apply
from ddp_bp.errors import DdpError, DtypeError, EngineError, InputError, ShapeError
from ddp_bp.nn import functional as F

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
few = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))


def mutations(a: np.ndarray) -> Iterator[np.ndarray]:
    """Arrays of other dtypes, numbers of axes and sides."""
    for dtype in (np.int64, np.int8, np.bool_, np.float16, np.float32, np.longdouble):
        yield a.astype(dtype)
    yield a[None]
    yield a[..., None]
    yield np.zeros((), a.dtype)
    yield np.zeros(0, a.dtype)
    yield np.zeros((1,) * 6, a.dtype)
    yield np.zeros((7, 5, 3), a.dtype)
    if a.ndim:
        yield a[:0]
        yield a[..., :0]
        yield np.concatenate([a, a], -1)
        if len(a):
            yield np.asarray(a[0])


def works(name: str, inputs: list[np.ndarray], options: tuple[Any, ...]) -> None:
    """The call gives a tensor and gradients of the inputs' shapes and dtypes, or an error that names `name`."""
    values = [Tensor(a, requires_grad=a.dtype.kind == "f") for a in inputs]
    try:
        output = apply(OPERATIONS[name], tuple(values), options)
    except (EngineError, InputError) as error:
        # Attention in one piece leaves it to the attention within to look at masks.
        named = "scaled_dot_product_attention" if "mask" in str(error) or "dropout by" in str(error) else name
        assert str(error).startswith((f"{name} got ", f"{name} takes ", f"{named} got ")), error
        assert "takes" in str(error) or "give" in str(error), error
        return
    assert output.dtype.kind in "fiub"
    if output.requires_grad:
        output.backward(np.ones(output.shape))
    for value in values:
        if value.grad is not None:
            assert (value.grad.shape, value.grad.dtype) == (value.shape, value.dtype)


@few
@given(data=st.data())
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_operations_take_inputs_or_name_them(name: str, data: st.DataObject) -> None:
    inputs, options = data.draw(CASES[name].drawn)
    for position, a in enumerate(inputs):
        for other in mutations(a):
            works(name, [*inputs[:position], other, *inputs[position + 1 :]], options)


# Where an axis stands among the options.
AXES = {
    "argmax": 0,
    "argmin": 0,
    "amax": 0,
    "amin": 0,
    "all": 0,
    "any": 0,
    "concatenate": 0,
    "cumsum": 0,
    "gather": 0,
    "log_softmax": 0,
    "logsumexp": 0,
    "mean": 0,
    "prod": 0,
    "softmax": 0,
    "stack": 0,
    "std": 0,
    "sum": 0,
    "var": 0,
}


@few
@given(data=st.data(), axis=st.sampled_from([99, -99, 1.5, "x", (0, 0), (99,), ("a",), [1.5]]))
@pytest.mark.parametrize("name", sorted(AXES))
def test_axes_that_are_not_there_are_named(name: str, data: st.DataObject, axis: Any) -> None:
    inputs, options = data.draw(CASES[name].drawn)
    changed = (*options[: AXES[name]], axis, *options[AXES[name] + 1 :])
    with pytest.raises(EngineError, match=f"^{name} got .* it takes "):
        apply(OPERATIONS[name], tuple(Tensor(a) for a in inputs), changed)


def test_every_operation_with_an_axis_is_tried() -> None:
    assert {name for name, operation in OPERATIONS.items() if "ndim)" in operation.expects} <= set(AXES)


def survives(function: Callable[..., Any], arguments: list[Any], named: dict[str, Any]) -> None:
    try:
        result = function(*arguments, **named)
    except DdpError as error:
        assert "got" in str(error) or "takes" in str(error) or "not" in str(error), error
        return
    for output in result if isinstance(result, tuple) else (result,):
        if isinstance(output, Tensor):
            assert output.dtype.kind in "fiub"
            if output.requires_grad:
                output.backward(np.ones(output.shape), retain_graph=True)


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_functions_work_or_say_what_they_take(name: str) -> None:
    function, arguments = getattr(F, name), TAKEN[name]
    survives(function, arguments, {})
    for position in range(len(arguments)):
        for wrong in NONSENSE:
            survives(function, [*arguments[:position], wrong, *arguments[position + 1 :]], {})
    for argument in list(inspect.signature(function).parameters)[len(arguments) :]:
        for wrong in NONSENSE:
            # Whatever Python can take for true or false is that, but for an array.
            if argument not in ("training", "reduction", "mode") or not isinstance(wrong, np.ndarray):
                survives(function, arguments, {argument: wrong})


def test_every_function_is_tried() -> None:
    assert set(F.__all__) == set(TAKEN)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_methods_work_or_say_what_they_take(name: str) -> None:
    arguments = METHODS[name]
    for position in range(len(arguments)):
        for wrong in NONSENSE:
            survives(getattr(Tensor, name), [X.clone(), *arguments[:position], wrong, *arguments[position + 1 :]], {})


@pytest.mark.parametrize("name", sorted(JOINING))
def test_functions_of_several_tensors_work_or_say_what_they_take(name: str) -> None:
    arguments = JOINING[name]
    for position in range(len(arguments)):
        for wrong in NONSENSE:
            survives(getattr(ddp, name), [*arguments[:position], wrong, *arguments[position + 1 :]], {})
            if isinstance(arguments[position], list):
                survives(getattr(ddp, name), [[X, wrong], *arguments[1:]], {})


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: F.relu(np.ones(3)), DtypeError, "relu got ndarray; it takes tensors: convert ndarray with tensor()"),
        (lambda: F.linear(X, [1.0], None), DtypeError, r"linear got \(2, 3, 4\) float64, list; it takes tensors"),
        (
            lambda: F.dropout(X, "much"),
            DtypeError,
            r"dropout got input \(2, 3, 4\) float64, p 'much'; it takes \(.*p: float = 0.5",
        ),
        (lambda: F.leaky_relu(X, whole(1)), InputError, "leaky_relu takes a number as negative_slope and got"),
        (lambda: X.split("x"), DtypeError, r"split got split_size 'x'; it takes \(split_size: int"),
        (lambda: X.squeeze("x"), ShapeError, r"squeeze got axis 'x' for shape \(2, 3, 4\)"),
        (lambda: X.to(dict), DtypeError, "to got object; it takes a dtype of floats"),
        (lambda: X + np.array(["a"]), DtypeError, "an operand of a tensor holds floats"),
    ],
)
def test_messages(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message.replace("()", r"\(\)")):
        call()


def test_what_python_says_itself_stays() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument") as caught:
        F.embedding(whole(1))  # type: ignore[call-arg]
    assert not isinstance(caught.value, DdpError)


def test_an_explained_function_keeps_its_own_errors_and_its_signature() -> None:
    @explained
    def function(a: int) -> int:
        """Says."""
        if a == 1:
            raise GoneError
        return [0][a]

    class GoneError(RuntimeError):
        pass

    assert function(0) == 0 and function.__doc__ == "Says."
    with pytest.raises(GoneError):
        function(1)
    with pytest.raises(DtypeError, match=r"function got a 5; it takes \(a: int\) \(list index"):
        function(5)
    assert number("f", "x", np.float32(0.5)) == 0.5


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 0), (2, 3, 0), (0, 3, 2, 2), (2, 3, 0, 2), (2, 3, 2, 0)])
def test_batch_norm_of_nothing_in_evaluation(shape: tuple[int, ...]) -> None:
    x, weight, bias = floats(*shape), floats(3), floats(3)
    y = F.batch_norm(x, ddp.tensor(np.zeros(3)), ddp.tensor(np.ones(3)), weight, bias)
    y.sum().backward()
    assert y.shape == shape and x.grad is not None and x.grad.shape == shape
    assert weight.grad is not None and bias.grad is not None and not weight.grad.any() and not bias.grad.any()


def test_scalars_along_their_only_axis() -> None:
    x = ddp.tensor(np.float64(3.0), requires_grad=True)
    (x.cumsum(0) * 2 + x.prod(-1) * 5).backward()
    assert x.cumsum(-1).shape == () and x.grad == 7


def test_a_value_with_more_axes_than_its_place() -> None:
    x, value = floats(2, 3), floats(1, 1, 1, 3)
    y = x.clone()
    y[1] = value
    y.sum().backward()
    np.testing.assert_array_equal(value.grad, np.ones((1, 1, 1, 3)))
