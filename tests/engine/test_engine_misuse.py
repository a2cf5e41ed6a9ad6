"""Whatever operations, functions and methods are given, they work or say who objects to what."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from engine_all_cases import CASES
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


RNG = np.random.default_rng(0)


def floats(*shape: int) -> Tensor:
    return ddp.tensor(RNG.standard_normal(shape), requires_grad=True)


def whole(*values: int) -> Tensor:
    return ddp.tensor(np.array(values))


PAIR = [floats(3, 2), floats(3, 2)]
IMAGES = floats(2, 3, 6, 6)
# Arguments that each function takes.
TAKEN: dict[str, list[Any]] = {
    "binary_cross_entropy_with_logits": PAIR,
    "cosine_embedding_loss": [*PAIR, whole(1, -1, 1)],
    "cross_entropy": [floats(3, 2), whole(1, 0, 1)],
    "dropout": [floats(3, 2)],
    "huber_loss": PAIR,
    "kl_div": PAIR,
    "l1_loss": PAIR,
    "linear": [floats(3, 2), floats(4, 2), floats(4)],
    "log_softmax": [floats(3, 2), 1],
    "mse_loss": PAIR,
    "nll_loss": [floats(3, 2), whole(1, 0, 1)],
    "pad": [floats(3, 2), (1, 1)],
    "relu": [floats(3, 2)],
    "sigmoid": [floats(3, 2)],
    "smooth_l1_loss": PAIR,
    "softmax": [floats(3, 2), 1],
    "tanh": [floats(3, 2)],
    "adaptive_avg_pool1d": [floats(2, 3, 5), 2],
    "adaptive_avg_pool2d": [IMAGES, 2],
    "avg_pool1d": [floats(2, 3, 5), 2],
    "avg_pool2d": [IMAGES, 2],
    "batch_norm": [floats(4, 3), ddp.tensor(np.zeros(3)), ddp.tensor(np.ones(3)), floats(3), floats(3), True],
    "bilinear": [floats(3, 2), floats(3, 4), floats(5, 2, 4), floats(5)],
    "conv1d": [floats(2, 3, 6), floats(4, 3, 2), floats(4)],
    "conv2d": [IMAGES, floats(4, 3, 2, 2), floats(4)],
    "conv_transpose2d": [IMAGES, floats(3, 4, 2, 2), floats(4)],
    "elu": [floats(3, 2)],
    "embedding": [whole(1, 0, 2), floats(4, 3)],
    "gelu": [floats(3, 2)],
    "group_norm": [floats(2, 4, 3), 2, floats(4), floats(4)],
    "layer_norm": [floats(2, 4), (4,), floats(4), floats(4)],
    "leaky_relu": [floats(3, 2)],
    "max_pool1d": [floats(2, 3, 5), 2],
    "max_pool2d": [IMAGES, 2],
    "rms_norm": [floats(2, 4), (4,), floats(4)],
    "scaled_dot_product_attention": [floats(2, 3, 4), floats(2, 3, 4), floats(2, 3, 4)],
    "silu": [floats(3, 2)],
    "softplus": [floats(3, 2)],
}
X = floats(2, 3, 4)
METHODS: dict[str, list[Any]] = {
    "sum": [1, True],
    "mean": [1],
    "max": [1],
    "var": [1],
    "logsumexp": [1],
    "cumsum": [1],
    "reshape": [6, 4],
    "transpose": [0, 1],
    "permute": [0, 2, 1],
    "squeeze": [0],
    "unsqueeze": [0],
    "flatten": [0, 1],
    "unflatten": [1, (3, 1)],
    "movedim": [0, 1],
    "flip": [0],
    "expand": [2, 3, 4],
    "broadcast_to": [(2, 3, 4)],
    "narrow": [1, 0, 2],
    "split": [1, 1],
    "chunk": [2, 1],
    "unbind": [0],
    "select": [0, 1],
    "index_select": [0, whole(1, 0)],
    "gather": [1, ddp.tensor(np.zeros((2, 1, 4), np.int64))],
    "clamp": [0, 1],
    "where": [ddp.tensor(np.ones((2, 3, 4), bool)), X],
    "masked_fill": [ddp.tensor(np.ones((2, 3, 4), bool)), 1.0],
    "softmax": [1],
    "to": [np.float32],
    "matmul": [floats(4, 3)],
    "add": [X],
    "maximum": [X],
    "pow": [2],
    "__getitem__": [(0,)],
    "copy_": [np.ones((2, 3, 4))],
}
JOINING: dict[str, list[Any]] = {
    "cat": [[X, X], 1],
    "stack": [[X, X], 1],
    "split": [X, 1, 1],
    "where": [X > 0, X, 0.0],
    "maximum": [X, X],
    "broadcast_tensors": [X, X],
    "einsum": ["bij,bij->", X, X],
}
NONSENSE: list[Any] = [
    *(None, "x", 99, -99, 1.5, np.nan, object(), {}, (), (9, 9), (1.5,), ("a", "b"), [1, 2], [[]]),
    *(np.zeros(3), np.array(["a"]), np.array([1j]), np.array([None])),
    *(floats(7, 5), floats(1, 1, 1, 1, 1, 1), ddp.tensor(np.float64(1)), ddp.tensor(np.zeros(0))),
    *(whole(1, 2, 3), ddp.tensor(np.ones((2, 3, 4), bool)), ddp.tensor(np.ones((3, 2), np.float32))),
]


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
