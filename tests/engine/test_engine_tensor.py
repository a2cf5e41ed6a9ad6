"""The Tensor itself: conversion, Python numbers, arrays, operators, text."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest

import ddp_bp as ddp
from ddp_bp.engine.functional import concatenate, maximum, minimum, where
from ddp_bp.errors import DtypeError, ShapeError


def test_the_package_loads_nothing_before_it_is_used() -> None:
    script = (
        "import sys, ddp_bp; assert 'numpy' not in sys.modules; assert 'tensor' in dir(ddp_bp); "
        "ddp_bp.__version__; assert 'numpy' not in sys.modules; ddp_bp.nn.Linear; ddp_bp.optim.SGD; "
        "from ddp_bp import tensor, nn, optim; print('fine')"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout == "fine\n", result.stderr


def test_every_exported_name_is_there() -> None:
    assert all(getattr(ddp, name) is not None for name in ddp.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ddp.nonsense


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.5, np.float32),
        ([1.0, 2], np.float32),
        (((1.0,), (2.0,)), np.float32),
        ([], np.float32),
        (3, np.int64),
        ([True, False], np.bool_),
        (np.ones(2), np.float64),
        (np.float64(1.0), np.float64),
        (np.ones(2, np.float16), np.float16),
        (np.ones(2, np.uint8), np.uint8),
        (np.ones(2, ">f4"), np.float32),
    ],
)
def test_dtypes_are_those_of_pytorch(data: object, dtype: type) -> None:
    assert ddp.tensor(data).dtype == dtype  # type: ignore[arg-type]


def test_tensor_copies_and_wrapping_does_not() -> None:
    array = np.ones(2)
    copied, wrapped = ddp.tensor(array), ddp.Tensor(array)
    array[0] = 5
    assert copied.tolist() == [1.0, 1.0]
    assert wrapped.tolist() == [5.0, 1.0]


@pytest.mark.parametrize("data", [[[1.0], [1.0, 2.0]], "text", [None]])
def test_what_is_no_array_of_numbers_is_refused(data: object) -> None:
    with pytest.raises((ShapeError, DtypeError), match="takes"):
        ddp.tensor(data)  # type: ignore[arg-type]
    with pytest.raises(DtypeError, match="NumPy array"):
        ddp.Tensor([1.0])  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_python_numbers_take_the_dtype_beside_them(dtype: type) -> None:
    x = ddp.tensor(np.ones(2, dtype))
    for result in (x + 1, 1 + x, x * 2.5, 2.5 - x, 1 / x, x / 3, x**2, 2**x, -x, x > 0.5):
        assert result.dtype == (np.bool_ if result.dtype == np.bool_ else dtype)
    assert (3 - x).tolist() == [2.0, 2.0]
    assert (3 / x).tolist() == [3.0, 3.0]
    assert (2 ** (x + x)).tolist() == [4.0, 4.0]


def test_integers_become_single_precision_where_they_must() -> None:
    n = ddp.tensor([1, 2])
    assert (n + 1).dtype == np.int64
    assert (n + 0.5).dtype == np.float32
    assert (n / n).dtype == np.float32
    assert n.exp().dtype == np.float32
    assert (ddp.tensor([True]) + 1).dtype == np.int64
    with pytest.raises(DtypeError, match="300 does not fit the uint8"):
        ddp.tensor(np.ones(2, np.uint8)) + 300


def test_arrays_on_either_side() -> None:
    x, array = ddp.tensor(np.ones(2), requires_grad=True), np.array([1.0, 2.0])
    for result in (array * x, x * array, array @ x, np.float64(3) * x):
        assert isinstance(result, ddp.Tensor) and result.requires_grad
    with pytest.raises(DtypeError, match="str"):
        x + "1"  # type: ignore[operator]


def test_numpy_gives_a_read_only_view() -> None:
    x = ddp.tensor([1.0, 2.0])
    view = x.numpy()
    assert np.shares_memory(view, x._array)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    assert np.asarray(x).tolist() == [1.0, 2.0]
    assert np.array(x, np.float64).dtype == np.float64


def test_single_elements_convert_to_numbers() -> None:
    x = ddp.tensor([[2.5]])
    assert (x.item(), float(x), int(x), bool(x)) == (2.5, 2.5, 2, True)
    for convert in (float, int, bool, ddp.Tensor.item):
        with pytest.raises(ShapeError, match=r"\(2,\)"):
            convert(ddp.tensor([1.0, 2.0]))
    with pytest.raises(ShapeError, match="len got"):
        len(ddp.tensor(1.0))


def test_arrangement_methods() -> None:
    x = ddp.tensor(np.arange(24.0).reshape(2, 3, 4))
    assert x.flatten(1).shape == (2, 12)
    assert x.flatten(0, 1).shape == (6, 4)
    assert x.flatten().shape == (24,)
    assert ddp.tensor(1.0).flatten().shape == (1,)
    assert x.reshape(4, -1).shape == x.reshape((4, 6)).shape == (4, 6)
    assert x.permute(2, 0, 1).shape == (4, 2, 3)
    assert x.transpose(0, -1).shape == (4, 3, 2)
    assert x.T.shape == (4, 3, 2)
    assert x[:, 1].shape == (2, 4)
    assert x[0, 0, 0].item() == 0.0
    assert x[ddp.tensor([1, 1])].shape == (2, 3, 4)
    assert [row.shape for row in x] == [(3, 4), (3, 4)]
    assert concatenate([x, x], dim=1).shape == (2, 6, 4)
    for wrong in (lambda: x.flatten(3), lambda: x.flatten(2, 1), lambda: x.transpose(0, 5), lambda: concatenate([])):
        with pytest.raises(ShapeError):
            wrong()


def test_choices() -> None:
    a, b = ddp.tensor([1.0, 5.0]), ddp.tensor([2.0, 3.0])
    assert maximum(a, b).tolist() == [2.0, 5.0]
    assert minimum(a, b).tolist() == [1.0, 3.0]
    assert where(a > b, a, b).tolist() == [2.0, 5.0]
    assert (a == a).tolist() == [True, True]
    assert (a != b).tolist() == [True, True]
    assert a.argmax().item() == 1


def test_gradients_at_ties_and_edges_are_those_of_pytorch() -> None:
    a, b = (ddp.tensor([1.0], requires_grad=True) for _ in range(2))
    maximum(a, b).sum().backward()
    assert (a.grad, b.grad) == ([0.5], [0.5])
    x = ddp.tensor([0.0, 2.0], requires_grad=True)
    (x**0).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 0.0]
    y = ddp.tensor([2.0], requires_grad=True)
    (ddp.tensor([0.0]) ** y).sum().backward()
    assert y.grad is not None and y.grad.tolist() == [0.0]
    z = ddp.tensor([-1000.0, 1000.0], requires_grad=True)
    z.sigmoid().sum().backward()
    assert z.sigmoid().tolist() == [0.0, 1.0]
    assert np.isfinite(z.grad).all()  # type: ignore[arg-type]


def test_text_shows_where_a_value_comes_from() -> None:
    x = ddp.tensor([1.0, 2.0], requires_grad=True)
    assert repr(x) == "tensor([1., 2.], requires_grad=True)"
    assert repr(x * 2) == "tensor([2., 4.], operation=mul)"
    assert repr(ddp.tensor(np.ones(1))) == "tensor([1.], dtype=float64)"


def test_deepcopy_of_a_leaf_is_independent() -> None:
    x = ddp.tensor([1.0], requires_grad=True)
    x.sum().backward()
    twin = copy.deepcopy([x, x])
    assert twin[0] is twin[1] and twin[0].requires_grad
    assert twin[0].grad is not None and twin[0].grad is not x.grad
    with ddp.no_grad():
        twin[0].add_(1)
    assert x.tolist() == [1.0]


def test_casts_are_recorded() -> None:
    x = ddp.tensor([1.0], requires_grad=True)
    y = x.to(np.float64)
    assert y.dtype == np.float64 and x.to(np.float32) is x
    (y * y).sum().backward()
    assert x.grad is not None and x.grad.dtype == np.float32 and x.grad.tolist() == [2.0]


def test_setting_a_gradient_is_checked() -> None:
    x = ddp.tensor([1.0, 2.0], requires_grad=True)
    x.grad = np.array([3, 4])
    assert x.grad is not None and x.grad.dtype == np.float32
    with pytest.raises(ShapeError, match=r"\(3,\)"):
        x.grad = np.ones(3)


def test_numbers_of_numpy_are_numbers_as_those_of_python_are() -> None:
    x = ddp.tensor(np.ones((2, 3), np.float32), requires_grad=True)
    for value in (np.sqrt(4), np.float64(2), np.float32(2), np.int64(2), 2.0, 2):
        for y in (x / value, x * value, x + value, x - value, value * x):
            assert y.dtype == np.float32
    assert (x / np.array([2.0, 2.0, 2.0])).dtype == np.float64
