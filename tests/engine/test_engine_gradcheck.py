"""The checker itself: it must fail on gradients that are wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import ddp_bp as ddp
from ddp_bp.engine.ops.operation import Operation
from ddp_bp.engine.tensor import apply
from ddp_bp.errors import DtypeError, EngineError


def cube(vjp: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[ddp.Tensor], ddp.Tensor]:
    operation = Operation("cube", lambda a: (a**3, a), lambda g, a, needs: (vjp(g, a),), "one array", reads=(0,))
    return lambda x: apply(operation, (x,))


def off_by_one_element(g: np.ndarray, a: np.ndarray) -> np.ndarray:
    slope = 3 * a * a
    slope[-1, -1] *= 1.001
    return np.asarray(g * slope)


X = np.random.default_rng(0).uniform(1, 2, (3, 4))


def test_it_passes_on_a_right_gradient() -> None:
    ddp.gradcheck(cube(lambda g, a: g * 3 * a * a), ddp.tensor(X, requires_grad=True))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda g, a: g * 2 * a * a,
        lambda g, a: 3 * a * a,
        lambda g, a: np.zeros_like(a),
        lambda g, a: g * np.nan,
        off_by_one_element,
    ],
)
def test_it_fails_on_a_wrong_gradient(wrong: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    with pytest.raises(EngineError, match=r"input 0 of shape \(3, 4\).*backward gives .* central differences give"):
        ddp.gradcheck(cube(wrong), ddp.tensor(X, requires_grad=True))


def test_it_fails_on_a_missing_gradient() -> None:
    with pytest.raises(EngineError, match=r"backward gives -?0, "):
        ddp.gradcheck(lambda x: x.detach() * 2 + x * 0, ddp.tensor(X, requires_grad=True))


def test_it_names_the_worst_input() -> None:
    with pytest.raises(EngineError, match="input 1"):
        ddp.gradcheck(
            lambda a, b: a * 2 + cube(off_by_one_element)(b),
            ddp.tensor(X, requires_grad=True),
            ddp.tensor(X, requires_grad=True),
        )


def test_it_checks_several_outputs_and_leaves_inputs_alone() -> None:
    x, scale = ddp.tensor(X, requires_grad=True), ddp.tensor(X + 1)
    ddp.gradcheck(lambda a, b: (a * b, a.exp(), a.sum()), x, scale)
    np.testing.assert_array_equal(x.numpy(), X)
    assert x.grad is None


def test_it_asks_for_something_to_check_in_double_precision() -> None:
    with pytest.raises(DtypeError, match="requires_grad"):
        ddp.gradcheck(lambda a: a, ddp.tensor(X))
    with pytest.raises(DtypeError, match="input 0 is float32"):
        ddp.gradcheck(lambda a: a, ddp.tensor([1.0], requires_grad=True))
