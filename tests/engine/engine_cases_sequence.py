"""Cases of activations, norms within a sample, and operations on sequences; see `engine_cases`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from engine_cases import A, Case, Drawn, numbers, positive_shapes, positive_sides, seeds, shapes, sides, unary
from hypothesis import strategies as st


@st.composite
def tabled(draw: Any) -> Drawn:
    num_rows, shape = draw(positive_sides), draw(shapes)
    indices = np.random.default_rng(draw(seeds)).integers(0, num_rows, shape)
    # Without a padding row: keeping its gradient from it is not the derivative. The module has a test of that.
    return [numbers((num_rows, draw(sides)), draw(seeds)), indices], (None,)


@st.composite
def attended(draw: Any) -> Drawn:
    leading = tuple(draw(st.lists(sides, max_size=2)))
    num_queries, num_keys, size, value_size = draw(sides), draw(positive_sides), draw(positive_sides), draw(sides)
    inputs = [
        numbers((*leading, num_queries, size), draw(seeds)),
        numbers((*leading, num_keys, size), draw(seeds)),
        numbers((*leading, num_keys, value_size), draw(seeds)),
    ]
    return masked(draw, inputs, (*leading, num_queries, num_keys), ())


@st.composite
def self_attended(draw: Any) -> Drawn:
    num_samples, length, num_heads, size = draw(sides), draw(sides), draw(positive_sides), draw(positive_sides)
    packed = numbers((num_samples, length, 3 * num_heads * size), draw(seeds))
    return masked(draw, [packed], (num_samples, num_heads, length, length), (num_heads,))


def masked(draw: Any, inputs: list[np.ndarray], shape: tuple[int, ...], options: tuple[Any, ...]) -> Drawn:
    kind = draw(st.sampled_from(["none", "booleans", "numbers"]))
    if kind != "none":
        start = draw(st.integers(0, len(shape) - 2))
        of_mask = tuple(1 if draw(st.booleans()) else side for side in shape[start:-2]) + shape[-2:]
        mask = numbers(of_mask, draw(seeds))
        if kind == "booleans":
            mask = np.asarray(mask > 0)
            # A query that may look at nothing is NaN to some and 0 to others; it has a test of its own.
            mask[..., :1] = True
        inputs = [*inputs, mask]
    p = draw(st.sampled_from([0.0, 0.5]))
    if p:
        inputs = [*inputs, np.random.default_rng(draw(seeds)).random(shape) > 0.4]
    return inputs, (*options, kind != "none", draw(st.booleans()), draw(st.sampled_from([0.5, 1.0])), p)


@st.composite
def recurred(draw: Any, num_gates: int, num_states: int, *more: Any) -> Drawn:
    num_steps, num_samples, num_in, size = (draw(sides) for _ in range(4))
    rows = num_gates * size
    inputs = [numbers((num_steps, num_samples, num_in), draw(seeds))]
    inputs += [numbers((num_samples, size), draw(seeds)) for _ in range(num_states)]
    inputs += [numbers((rows, num_in), draw(seeds)), numbers((rows, size), draw(seeds))]
    if draw(st.booleans()):
        inputs += [numbers((rows,), draw(seeds)), numbers((rows,), draw(seeds))]
    return inputs, (*(draw(option) for option in more), draw(st.booleans()))


@st.composite
def bilinear(draw: Any) -> Drawn:
    leading = draw(shapes)
    size_a, size_b, num_out = draw(sides), draw(sides), draw(sides)
    inputs = [
        numbers((*leading, size_a), draw(seeds)),
        numbers((*leading, size_b), draw(seeds)),
        numbers((num_out, size_a, size_b), draw(seeds)),
    ]
    if draw(st.booleans()):
        inputs.append(numbers((num_out,), draw(seeds)))
    return inputs, ()


@st.composite
def normed(draw: Any, num_parameters: int) -> Drawn:
    shape = draw(positive_shapes)
    leading = tuple(draw(st.lists(sides, max_size=2)))
    count = draw(st.integers(0, num_parameters))
    return [numbers((*leading, *shape), draw(seeds)), *(numbers(shape, draw(seeds)) for _ in range(count))], (
        shape,
        0.1,
    )


@st.composite
def group_normed(draw: Any) -> Drawn:
    groups, per_group = draw(positive_sides), draw(positive_sides)
    spatial = tuple(draw(st.lists(positive_sides, max_size=2)))
    num_channels = groups * per_group
    inputs = [numbers((draw(sides), num_channels, *spatial), draw(seeds))]
    if draw(st.booleans()):
        inputs += [numbers((num_channels,), draw(seeds)), numbers((num_channels,), draw(seeds))]
    return inputs, (groups, 0.1)


def torch_attention(torch: Any, query: Any, key: Any, value: Any, *rest: Any) -> Any:
    """Step by step, so that what stays in dropout can be given."""
    *more, has_mask, is_causal, scale, p = rest
    scores = query @ key.transpose(-1, -2) * scale
    if has_mask:
        mask = more[0]
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    shares = torch.softmax(scores, -1)
    return (shares * more[-1] / (1 - p) if p else shares) @ value


def torch_self_attention(torch: Any, packed: Any, *rest: Any) -> Any:
    *more, num_heads, has_mask, is_causal, scale, p = rest
    parts = packed.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4) if packed.numel() else None
    if parts is None:
        return packed[..., : packed.shape[-1] // 3] * 1
    output = torch_attention(torch, *parts, *more, has_mask, is_causal, scale, p)
    return output.transpose(1, 2).flatten(2)


def torch_recurrent(name: str) -> Callable[..., Any]:
    """In one direction, written out from the formulas: torch's own takes neither empty axes nor a direction."""

    def run(torch: Any, a: Any, *rest: Any) -> Any:
        num_states = 2 if name == "lstm" else 1
        is_reverse = rest[-1]
        state, *cells = rest[:num_states]
        arrays = [value for value in rest[num_states:] if isinstance(value, torch.Tensor)]
        weight_ih, weight_hh, *biases = arrays
        bias_ih, bias_hh = biases or (0, 0)
        cell, outputs = cells[0] if cells else None, [None] * len(a)
        for step in reversed(range(len(a))) if is_reverse else range(len(a)):
            of_input, of_state = a[step] @ weight_ih.T + bias_ih, state @ weight_hh.T + bias_hh
            if name == "rnn":
                state = getattr(torch, rest[-2])(of_input + of_state)
            elif name == "lstm":
                i, f, g, o = (of_input + of_state).chunk(4, 1) if state.shape[1] else [state] * 4
                cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
                state = torch.sigmoid(o) * torch.tanh(cell)
            else:
                (r, z, n), (hr, hz, hn) = (
                    x.chunk(3, 1) if state.shape[1] else [state] * 3 for x in (of_input, of_state)
                )
                z = torch.sigmoid(z + hz)
                state = (1 - z) * torch.tanh(n + torch.sigmoid(r + hr) * hn) + z * state
            outputs[step] = state
        everything = [*outputs, cell] if name == "lstm" else outputs
        return torch.stack(everything) if everything else a.new_zeros(0, *state.shape) + 0 * arrays[0].sum()

    return run


X = np.ones((5, 2, 3))
H = np.ones((2, 4))


def recurrent_refusals(num_gates: int, states: list[np.ndarray], *more: Any) -> list[Any]:
    rows = num_gates * 4
    good = [np.ones((rows, 3)), np.ones((rows, 4))]
    return [
        ([X[0], *states, *good], (*more, False)),
        ([X, *states, good[0], good[0]], (*more, False)),
        ([X, *states, *good, np.ones(rows), np.ones(3)], (*more, False)),
        ([X.astype(np.float32), *states, *good], (*more, False)),
        ([X, *[state[:1] for state in states], *good], (*more, False)),
    ]


INTEGERS = [([A.astype(np.int64)], ())]
Q = np.ones((2, 3, 4))
PLAIN = (False, False, 1.0, 0.0)

CASES: dict[str, Case] = {
    "leaky_relu": Case(
        unary(options=(0.2,)),
        lambda torch, a, slope: torch.nn.functional.leaky_relu(a, slope),
        [([A.astype(np.int64)], (0.2,))],
    ),
    "elu": Case(
        unary(options=(0.7,)),
        lambda torch, a, alpha: torch.nn.functional.elu(a, alpha),
        [([A.astype(np.int64)], (0.7,))],
    ),
    "silu": Case(unary(), lambda torch, a: torch.nn.functional.silu(a), INTEGERS),
    "softplus": Case(
        unary(options=(2.0, 1.5)),
        lambda torch, a, beta, threshold: torch.nn.functional.softplus(a, beta, threshold),
        [([A.astype(np.int64)], (1.0, 20.0))],
    ),
    "gelu": Case(
        st.sampled_from(["none", "tanh"]).flatmap(lambda form: unary(options=(form,))),
        lambda torch, a, form: torch.nn.functional.gelu(a, approximate=form),
        [([A.astype(np.int64)], ("none",))],
    ),
    "embedding": Case(
        tabled(),
        lambda torch, weight, indices, row: torch.nn.functional.embedding(indices, weight, row),
        [
            ([A, np.array([0, 2])], (None,)),
            ([A, np.array([-1])], (None,)),
            ([A, np.array([0.0])], (None,)),
            ([X, np.array([0])], (None,)),
        ],
    ),
    "scaled_dot_product_attention": Case(
        attended(),
        torch_attention,
        [
            ([Q, Q[..., :3], Q], PLAIN),
            ([Q, Q, Q[:, :2]], PLAIN),
            ([Q[:1], Q, Q], PLAIN),
            ([Q, Q, Q.astype(np.float32)], PLAIN),
            ([Q, Q, Q, np.ones((3, 4))], (True, *PLAIN[1:])),
            ([Q, Q, Q, np.ones((3, 3), np.int64)], (True, *PLAIN[1:])),
            ([Q, Q, Q, np.ones((2, 3)) > 0], (*PLAIN[:3], 0.5)),
        ],
    ),
    "self_attention": Case(
        self_attended(),
        torch_self_attention,
        [([Q], (2, *PLAIN)), ([Q[0]], (1, *PLAIN)), ([np.ones((2, 3, 6), np.int64)], (1, *PLAIN))],
    ),
    "rnn": Case(
        recurred(1, 1, st.sampled_from(["tanh", "relu"])), torch_recurrent("rnn"), recurrent_refusals(1, [H], "tanh")
    ),
    "lstm": Case(recurred(4, 2), torch_recurrent("lstm"), recurrent_refusals(4, [H, H])),
    "gru": Case(recurred(3, 1), torch_recurrent("gru"), recurrent_refusals(3, [H])),
    "bilinear": Case(
        bilinear(),
        lambda torch, a, b, weight, *bias: torch.einsum("...i,oij,...j->...o", a, weight, b) + (bias[0] if bias else 0),
        [
            ([A, A, np.ones((2, 3, 4))], ()),
            ([A, A[:1], np.ones((2, 3, 3))], ()),
            ([A, A, np.ones((2, 3, 3)), np.ones(3)], ()),
            ([A, A, np.ones((2, 3, 3), np.float32)], ()),
        ],
    ),
    "layer_norm": Case(
        normed(2),
        lambda torch, a, *rest: torch.nn.functional.layer_norm(a, rest[-2], *rest[:-2], eps=rest[-1]),
        [([A], ((2,), 0.1)), ([A, np.ones(2)], ((3,), 0.1)), ([A.astype(np.int64)], ((3,), 0.1)), ([A], ((), 0.1))],
    ),
    "rms_norm": Case(
        normed(1),
        lambda torch, a, *rest: torch.nn.functional.rms_norm(a, rest[-2], *rest[:-2], eps=rest[-1]),
        [([A], ((2,), 0.1)), ([A, np.ones(2)], ((3,), 0.1)), ([np.ones((2, 0))], ((0,), 0.1))],
    ),
    "group_norm": Case(
        group_normed(),
        # Not the function in torch.nn, which refuses groups of one element.
        lambda torch, a, *rest: torch.group_norm(a, rest[-2], *rest[:-2], eps=rest[-1]),
        [([A], (2, 0.1)), ([A, np.ones(2)], (3, 0.1)), ([A[0]], (1, 0.1)), ([A, np.ones(3, np.float32)], (3, 0.1))],
    ),
}
