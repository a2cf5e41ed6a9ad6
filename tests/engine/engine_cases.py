"""For every operation: inputs to try it on, the PyTorch function that it agrees with, and inputs that it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

Inputs = list[np.ndarray]
Drawn = tuple[Inputs, tuple[Any, ...]]


class Case(NamedTuple):
    """`drawn` gives (inputs, options); floating inputs are float64. `constant` positions get no gradient."""

    drawn: st.SearchStrategy[Drawn]
    torch: Callable[..., Any]
    refused: list[tuple[list[Any], tuple[Any, ...]]]
    constant: tuple[int, ...] = ()


sides = st.sampled_from([0, 1, 2, 3])
positive_sides = st.sampled_from([1, 2, 3])
shapes = st.lists(sides, max_size=3).map(tuple)
positive_shapes = st.lists(positive_sides, min_size=1, max_size=3).map(tuple)
seeds = st.integers(0, 2**32 - 1)


def numbers(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Normal numbers, in one of several memory layouts."""
    rng = np.random.default_rng(seed)
    layout = seed % 3
    if layout == 1 and len(shape) > 1:
        return rng.standard_normal(shape[::-1]).T
    if layout == 2 and shape:
        return rng.standard_normal((*shape[:-1], 2 * shape[-1]))[..., ::2]
    return np.asarray(rng.standard_normal(shape))


@st.composite
def several(draw: Any, count: int, positive: bool = False) -> Drawn:
    found = draw(mutually_broadcastable_shapes(num_shapes=count, max_dims=3, min_side=0, max_side=3))
    inputs = [numbers(shape, draw(seeds)) for shape in found.input_shapes]
    return [np.asarray(np.abs(a) + 0.5) for a in inputs] if positive else inputs, ()


@st.composite
def unary(draw: Any, positive: bool = False, options: tuple[Any, ...] = ()) -> Drawn:
    a = numbers(draw(shapes), draw(seeds))
    return [np.asarray(np.abs(a) + 0.5) if positive else a], options


@st.composite
def conditional(draw: Any) -> Drawn:
    (condition, a, b), _ = draw(several(3))
    return [np.asarray(condition > 0), a, b], ()


@st.composite
def reduced(draw: Any, empty: bool) -> Drawn:
    shape = draw(shapes if empty else positive_shapes)
    axes = st.permutations(range(len(shape))).flatmap(
        lambda order: st.integers(0, len(order)).map(lambda count: tuple(order[:count]))
    )
    axis = draw(st.one_of(st.none(), axes, st.integers(-len(shape), len(shape) - 1) if shape else st.none()))
    return [numbers(shape, draw(seeds))], (axis, draw(st.booleans()))


@st.composite
def along_axis(draw: Any, *more: Any) -> Drawn:
    shape = draw(positive_shapes)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    return [numbers(shape, draw(seeds))], (axis, *more)


@st.composite
def reshaped(draw: Any) -> Drawn:
    shape = draw(shapes)
    return [numbers(shape, draw(seeds))], (tuple(draw(st.permutations(shape))),)


@st.composite
def permuted(draw: Any) -> Drawn:
    shape = draw(shapes)
    axes = draw(st.permutations(range(len(shape))))
    return [numbers(shape, draw(seeds))], (tuple(a - draw(st.sampled_from([0, len(shape)])) for a in axes),)


@st.composite
def expanded(draw: Any) -> Drawn:
    found = draw(mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=3))
    return [numbers(found.input_shapes[0], draw(seeds))], (found.result_shape,)


INDICES: list[tuple[Any, ...]] = [
    (...,),
    (0, ...),
    (-1, slice(None), 1, ...),
    (slice(None, None, -2), ...),
    (..., None, slice(1, 1)),
    (np.array([2, 0, 2, 2]), ...),
    (slice(None), np.array([[1, 1], [0, 1]]), ...),
    (np.array([0, 2]), np.array([1, 1]), np.array([3, 3])),
    (np.array([True, False, True]), ...),
    (np.array([], np.intp), ...),
]


@st.composite
def indexed(draw: Any) -> Drawn:
    return [numbers((3, 2, 4), draw(seeds))], (draw(st.sampled_from(INDICES)),)


@st.composite
def assigned(draw: Any) -> Drawn:
    # Not those that name an element twice: which of the values stays there is undefined.
    index = draw(st.sampled_from([*INDICES[:5], *INDICES[8:]]))
    a = numbers((3, 2, 4), draw(seeds))
    shape = a[index].shape
    keep = draw(st.integers(0, len(shape)))
    value_shape = tuple(1 if draw(st.booleans()) else side for side in shape)[len(shape) - keep :]
    return [a, numbers(value_shape, draw(seeds))], (index,)


@st.composite
def joined(draw: Any) -> Drawn:
    shape = draw(st.lists(sides, min_size=1, max_size=3))
    axis = draw(st.integers(0, len(shape) - 1))
    parts = [
        numbers(tuple(draw(sides) if position == axis else side for position, side in enumerate(shape)), draw(seeds))
        for _ in range(draw(st.integers(1, 3)))
    ]
    return parts, (axis - draw(st.sampled_from([0, len(shape)])),)


@st.composite
def multiplied(draw: Any) -> Drawn:
    n, k, m = draw(sides), draw(sides), draw(sides)
    kind = draw(st.sampled_from(["matrices", "left", "right", "vectors"]))
    found = draw(mutually_broadcastable_shapes(num_shapes=2, max_dims=2, min_side=0, max_side=3))
    left, right = found.input_shapes
    a = (k,) if kind in ("left", "vectors") else (*left, n, k)
    b = (k,) if kind in ("right", "vectors") else (*right, k, m)
    return [numbers(a, draw(seeds)), numbers(b, draw(seeds))], ()


@st.composite
def affine(draw: Any) -> Drawn:
    leading = draw(st.lists(sides, max_size=3))
    num_in, num_out = draw(sides), draw(sides)
    inputs = [numbers((*leading, num_in), draw(seeds)), numbers((num_out, num_in), draw(seeds))]
    if draw(st.booleans()):
        inputs.append(numbers((num_out,), draw(seeds)))
    return inputs, ()


@st.composite
def dropped(draw: Any) -> Drawn:
    a = numbers(draw(shapes), draw(seeds))
    kept = np.asarray(np.random.default_rng(draw(seeds)).random(a.shape) < 0.5)
    return [a, kept], (draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])),)


def for_torch(index: tuple[Any, ...], torch: Any) -> tuple[Any, ...]:
    return tuple(torch.from_numpy(entry) if isinstance(entry, np.ndarray) else entry for entry in index)


def all_or(axis: Any, a: Any) -> Any:
    return tuple(range(a.ndim)) if axis is None else axis


def torch_reduce(name: str) -> Callable[..., Any]:
    def reduce(torch: Any, a: Any, axis: Any, keepdims: bool) -> Any:
        # To PyTorch an empty tuple means all axes; to NumPy, none.
        if axis == ():
            return a * 1
        return getattr(torch, name)(a, all_or(axis, a), keepdims) if a.ndim else a * 1

    return reduce


def torch_setitem(torch: Any, a: Any, value: Any, index: tuple[Any, ...]) -> Any:
    if any(isinstance(entry, slice) and entry.step == -2 for entry in index):
        index = (torch.arange(a.shape[0] - 1, -1, -2), ...)
    output = a.clone()
    output[for_torch(index, torch)] = value
    return output


def torch_getitem(torch: Any, a: Any, index: tuple[Any, ...]) -> Any:
    if any(isinstance(entry, slice) and entry.step == -2 for entry in index):
        index = (torch.arange(a.shape[0] - 1, -1, -2), ...)
    return a[for_torch(index, torch)]


A = np.ones((2, 3))
MISMATCH = [([A, np.ones((4, 3))], ())]
BAD_AXES = [([A], (2, False)), ([A], ((0, 0), False)), ([A], (-3, True))]


def binary(name: str, positive: bool = False) -> Case:
    return Case(several(2, positive), lambda torch, a, b: getattr(torch, name)(a, b), MISMATCH)


def function(name: str, positive: bool = False) -> Case:
    return Case(unary(positive), lambda torch, a: getattr(torch, name)(a), [([A, A], ())])


CASES: dict[str, Case] = {
    **{name: binary(name) for name in ("add", "sub", "mul", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge")},
    "div": Case(
        several(2).map(lambda drawn: ([drawn[0][0], np.asarray(np.abs(drawn[0][1]) + 0.5)], ())),
        lambda torch, a, b: a / b,
        MISMATCH,
    ),
    "pow": binary("pow", positive=True),
    "where": Case(
        conditional(),
        lambda torch, c, a, b: torch.where(c, a, b),
        [([A, A, A], ()), ([A > 0, np.ones(2), np.ones(4)], ())],
    ),
    **{name: function(name) for name in ("neg", "abs", "exp", "tanh", "sigmoid", "relu")},
    **{name: function(name, positive=True) for name in ("log", "sqrt")},
    "cast": Case(unary(options=(np.dtype(np.float64),)), lambda torch, a, dtype: a * 1, [([A], ("nonsense",))]),
    "sum": Case(reduced(empty=True), torch_reduce("sum"), BAD_AXES),
    "mean": Case(reduced(empty=False), torch_reduce("mean"), [*BAD_AXES, ([np.ones(3, np.int64)], (None, False))]),
    "amax": Case(reduced(empty=False), torch_reduce("amax"), [*BAD_AXES, ([np.ones((0, 2))], (0, False))]),
    "amin": Case(reduced(empty=False), torch_reduce("amin"), [*BAD_AXES, ([np.ones((0, 2))], (0, False))]),
    "argmax": Case(
        along_axis(False),
        lambda torch, a, axis, keepdims: torch.argmax(a, axis, keepdims),
        [([A], (2, False)), ([np.ones((0, 2))], (0, False))],
    ),
    "reshape": Case(
        reshaped(), lambda torch, a, shape: a.reshape(shape), [([A], ((4, 2),)), ([A], ((-1, -1),)), ([A], ("x",))]
    ),
    "permute": Case(permuted(), lambda torch, a, axes: a.permute(axes), [([A], ((0, 0),)), ([A], ((0,),))]),
    "expand": Case(expanded(), lambda torch, a, shape: a.expand(shape), [([A], ((4, 3),)), ([A], ((3,),))]),
    "getitem": Case(
        indexed(),
        torch_getitem,
        [([A], ((5, ...),)), ([A], ((0, 0, 0, ...),)), ([A], ((np.array([0.5]), ...),)), ([A], (("x", ...),))],
    ),
    "setitem": Case(assigned(), torch_setitem, [([A, np.ones(4)], ((0, ...),)), ([A, np.ones(3)], ((7, ...),))]),
    "concatenate": Case(
        joined(),
        lambda torch, *parts_and_axis: torch.cat(parts_and_axis[:-1], parts_and_axis[-1]),
        [([A, np.ones((2, 4))], (0,)), ([A, np.ones(3)], (0,)), ([A], (2,))],
    ),
    "clone": Case(unary(), lambda torch, a: a.clone(), [([A, A], ())]),
    "matmul": Case(
        multiplied(),
        lambda torch, a, b: torch.matmul(a, b),
        [([A, A], ()), ([A, np.ones(())], ()), ([A, np.ones((3, 1), np.float32)], ())],
    ),
    "linear": Case(
        affine(),
        lambda torch, *inputs: torch.nn.functional.linear(*inputs),
        [
            ([A, np.ones((4, 2))], ()),
            ([A, np.ones(3)], ()),
            ([np.ones(()), A], ()),
            ([A, A, np.ones(3)], ()),
            ([A, A.astype(np.float32)], ()),
            ([A, A, np.ones(2, np.float32)], ()),
        ],
    ),
    "dropout": Case(
        dropped(),
        lambda torch, a, kept, p: a * kept * (1 / (1 - p) if p < 1 else 0),
        [([A, np.ones(4, bool)], (0.5,)), ([A.astype(np.int64), A > 0], (0.5,)), ([A, A], (0.5,))],
        constant=(1,),
    ),
}
