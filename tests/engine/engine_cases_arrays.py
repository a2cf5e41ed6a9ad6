"""Cases of the operations on arrays beyond the first ones: functions, statistics, picking, joining, einsum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from engine_cases import (
    BAD_AXES,
    A,
    Case,
    Drawn,
    along_axis,
    binary,
    function,
    numbers,
    positive_sides,
    reduced,
    seeds,
    several,
    shapes,
    sides,
    torch_reduce,
    unary,
)
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes


def whole(drawn: Drawn) -> Drawn:
    """Integers, or booleans for every other draw."""
    inputs, options = drawn
    integers = [np.asarray(np.rint(a * 4), np.int64) for a in inputs]
    return ([np.asarray(a % 2 == 0) for a in integers] if inputs[0].size % 2 else integers), options


def divided(drawn: Drawn) -> Drawn:
    """A divisor of either sign that is nowhere near 0."""
    (a, b), options = drawn
    return [np.asarray(a * 3), np.asarray(np.copysign(np.abs(b) + 0.5, b))], options


def bounded(drawn: Drawn) -> Drawn:
    """Bounds that no element stands on; they cross in places."""
    (a, low, high), options = drawn
    return [a, np.asarray(low * 0.7 - 0.3), np.asarray(high * 0.9 + 0.2)], options


def truths(drawn: Drawn) -> Drawn:
    (a,), options = drawn
    return [np.asarray(a > 0.5)], options


@st.composite
def with_zeros(draw: Any) -> Drawn:
    (a,), options = draw(reduced(empty=True))
    a = a.copy()
    a[a < -0.8] = 0
    return [a], options


@st.composite
def varied(draw: Any) -> Drawn:
    (a,), (axis, keepdims) = draw(reduced(empty=False))
    axes = range(a.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    num_reduced = math.prod(a.shape[i] for i in axes)
    return [a], (axis, keepdims, draw(st.sampled_from([0.0, 1.0])) if num_reduced > 1 else 0.0)


@st.composite
def accumulated(draw: Any) -> Drawn:
    shape = tuple(draw(st.lists(sides, min_size=1, max_size=3)))
    return [numbers(shape, draw(seeds))], (draw(st.integers(-len(shape), len(shape) - 1)),)


@st.composite
def gathered(draw: Any) -> Drawn:
    shape = tuple(draw(st.lists(positive_sides, max_size=3)))
    axis = draw(st.integers(-len(shape), len(shape) - 1)) if shape else draw(st.sampled_from([0, -1]))
    wanted = [draw(st.integers(0, side)) for side in shape]
    if shape:
        wanted[axis] = draw(st.integers(0, 5))
    side = shape[axis] if shape else 1
    return [numbers(shape, draw(seeds)), np.random.default_rng(draw(seeds)).integers(0, side, wanted)], (axis,)


@st.composite
def stacked(draw: Any) -> Drawn:
    shape = draw(shapes)
    parts = [numbers(shape, draw(seeds)) for _ in range(draw(st.integers(1, 3)))]
    return parts, (draw(st.integers(-len(shape) - 1, len(shape))),)


@st.composite
def padded(draw: Any) -> Drawn:
    shape = draw(shapes)
    widths = tuple(
        (draw(st.integers(-1, 2)), draw(st.integers(-1, 2)))
        if side > 1
        else (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
        for side in shape
    )
    return [numbers(shape, draw(seeds))], (widths, draw(st.sampled_from([0, 1.5])))


EQUATIONS = [
    "ij,jk->ik",
    "ij,kj",
    "bij,bjk->bik",
    "bhqd,bhkd->bhqk",
    "...ij,...jk->...ik",
    "b...d,d->b...",
    "...,...",
    "i,j->ji",
    "i,i->i",
    "ij,ij->",
    "ij,jk,kl->li",
    "ab,b,bc->ac",
    "ijk->kj",
    "ij->",
    "ii->i",
    "ii",
    "iji,jk->ik",
    "abc , cb -> a",
]


@st.composite
def contracted(draw: Any) -> Drawn:
    equation = draw(st.sampled_from(EQUATIONS))
    found: dict[str, int] = {}
    hidden = draw(mutually_broadcastable_shapes(num_shapes=2, max_dims=2, min_side=0, max_side=2)).input_shapes
    operands = []
    for k, term in enumerate(equation.split("->")[0].replace(" ", "").split(",")):
        before, dots, after = term.partition("...")
        # Now and then an axis has length 1 where others of its label are longer.
        thin = draw(st.booleans()) and len(set(term)) == len(term)
        known = {letter: found.setdefault(letter, draw(sides)) for letter in before + after}
        axes = [[1 if thin and i == 0 else known[letter] for i, letter in enumerate(part)] for part in (before, after)]
        operands.append(numbers((*axes[0], *(hidden[k % 2] if dots else ()), *axes[1]), draw(seeds)))
    return operands, (equation,)


def torch_prod(torch: Any, a: Any, axis: Any, keepdims: bool) -> Any:
    axes = range(a.ndim) if axis is None else [i % a.ndim for i in (axis if isinstance(axis, tuple) else (axis,))]
    for i in sorted(axes, reverse=True):
        a = torch.prod(a, i, keepdims)
    return a * 1


def torch_spread(name: str) -> Any:
    def compute(torch: Any, a: Any, axis: Any, keepdims: bool, correction: float) -> Any:
        if axis == ():
            return a * 0
        return getattr(torch, name)(a, axis, correction=correction, keepdim=keepdims)

    return compute


def torch_logsumexp(torch: Any, a: Any, axis: Any, keepdims: bool) -> Any:
    if axis == () or not a.ndim:
        return a * 1
    return torch.logsumexp(a, tuple(range(a.ndim)) if axis is None else axis, keepdims)


def torch_pad(torch: Any, a: Any, widths: Any, value: float) -> Any:
    flat = [width for pair in reversed(widths) for width in pair]
    return torch.nn.functional.pad(a, flat, value=value) if flat else a * 1


INTEGERS = np.arange(6).reshape(2, 3)
BITS = [([A, A], ()), ([INTEGERS, np.ones((4, 3), np.int64)], ())]

CASES: dict[str, Case] = {
    **{name: function(name) for name in ("square", "expm1", "sin", "cos", "sign", "floor", "ceil", "round", "trunc")},
    **{name: function(name) for name in ("isnan", "isfinite")},
    **{name: function(name, positive=True) for name in ("reciprocal", "rsqrt", "log1p", "log2")},
    "clip": Case(
        several(3).map(bounded),
        lambda torch, *inputs: torch.clamp(*torch.broadcast_tensors(*inputs)),
        [([A, A, np.ones(2)], ()), ([A, A], ())],
    ),
    **{name: binary(name)._replace(drawn=several(2).map(divided)) for name in ("remainder", "floor_divide")},
    **{
        f"bitwise_{name}": binary(f"bitwise_{name}")._replace(drawn=several(2).map(whole), refused=BITS)
        for name in ("and", "or", "xor")
    },
    "bitwise_not": function("bitwise_not")._replace(drawn=unary().map(whole), refused=[([A], ())]),
    "argmin": Case(
        along_axis(False),
        lambda torch, a, axis, keepdims: torch.argmin(a, axis, keepdims),
        [([A], (2, False)), ([np.ones((0, 2))], (0, False))],
    ),
    "any": Case(reduced(empty=True).map(truths), torch_reduce("any"), BAD_AXES),
    "all": Case(reduced(empty=True).map(truths), torch_reduce("all"), BAD_AXES),
    "prod": Case(with_zeros(), torch_prod, BAD_AXES),
    "var": Case(varied(), torch_spread("var"), [([INTEGERS], (0, False, 1.0)), ([A], (2, False, 1.0))]),
    "std": Case(varied(), torch_spread("std"), [([INTEGERS], (0, False, 1.0)), ([A], ((0, 0), False, 1.0))]),
    "logsumexp": Case(reduced(empty=False), torch_logsumexp, BAD_AXES),
    "cumsum": Case(accumulated(), lambda torch, a, axis: torch.cumsum(a, axis), [([A], (2,)), ([A], (None,))]),
    "gather": Case(
        gathered(),
        lambda torch, a, index, axis: torch.gather(a, axis, index),
        [
            ([A, INTEGERS], (0,)),
            ([A, INTEGERS - 1], (1,)),
            ([A, INTEGERS[0]], (1,)),
            ([A, np.zeros((3, 3), np.int64)], (1,)),
            ([A, INTEGERS], (2,)),
            ([A, A], (1,)),
        ],
    ),
    "stack": Case(
        stacked(),
        lambda torch, *parts_and_axis: torch.stack(parts_and_axis[:-1], parts_and_axis[-1]),
        [([A, np.ones((2, 4))], (0,)), ([A, A], (3,))],
    ),
    "pad": Case(
        padded(), torch_pad, [([A], (((1, 1),), 0)), ([A], (((0, 0), (-2, -2)), 0)), ([A], (((0, 0), (0, "x")), 0))]
    ),
    "einsum": Case(
        contracted(),
        lambda torch, *operands_and_equation: torch.einsum(operands_and_equation[-1], *operands_and_equation[:-1]),
        [
            ([A, A], ("ij,jk->ik",)),
            ([A], ("ij,jk->ik",)),
            ([A], ("ijk->i",)),
            ([A], ("ij->ik",)),
            ([A], ("ij->ii",)),
            ([A], ("i1->i",)),
            ([A], ("ii->i",)),
            ([np.ones((1, 3))], ("ii->i",)),
            ([A, A.astype(np.float32)], ("ij,ij->",)),
        ],
    ),
}
