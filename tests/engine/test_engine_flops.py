"""Counts of arithmetic against calculations by hand, and against the sizes of the products that NumPy is given."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ddp_bp.engine.ops import OPERATIONS
from ddp_bp.engine.ops.flops import count_flops

# Operation, shapes of inputs and output, options, forward, gradients. Sizes are distinct primes where they can be.
BY_HAND: list[tuple[str, list[tuple[int, ...]], tuple[int, ...], tuple[Any, ...], int, list[int]]] = [
    # 2 x 3 x 5 triples, each a product and a sum.
    ("einsum", [(2, 3), (3, 5)], (2, 5), ("ik,kj->ij",), 60, [60, 60]),
    ("einsum", [(7, 2, 3), (7, 3, 5)], (7, 2, 5), ("bik,bkj->bij",), 420, [420, 420]),
    # Nothing is summed forward; backward sums over the other's axis.
    ("einsum", [(2,), (3,)], (2, 3), ("i,j->ij",), 6, [12, 12]),
    ("einsum", [(2, 3), (2, 3)], (2, 3), ("ij,ij->ij",), 6, [6, 6]),
    # The dot product's gradients are scaled copies.
    ("einsum", [(5,), (5,)], (), ("i,i->",), 10, [5, 5]),
    # k is summed alone, over 6 elements, before the outer product of 2 x 5.
    ("einsum", [(2, 3), (5,)], (2, 5), ("ik,j->ij",), 16, [20, 20]),
    ("einsum", [(2, 3)], (3,), ("ik->k",), 6, [6]),
    ("einsum", [(2, 3)], (3, 2), ("ik->ki",), 0, [0]),
    # (2, 3)(3, 5) is 60, (2, 5)(5, 7) is 140. The gradient of (2, 5) is another 140, then 60 for either.
    ("einsum", [(2, 3), (3, 5), (5, 7)], (2, 7), ("ij,jk,kl->il",), 200, [60, 60 + 140, 140]),
    # 11 samples of 2 heads, 3 queries and 5 keys of size 7, values of size 13.
    (
        "scaled_dot_product_attention",
        [(11, 2, 3, 7), (11, 2, 5, 7), (11, 2, 5, 13)],
        (11, 2, 3, 13),
        (False, False, 1.0, 0.0),
        330 * 2 * (7 + 13),
        [330 * 2 * (7 + 13), 330 * 2 * 7, 330 * 2 * 13],
    ),
    # 128 queries and keys, the first 64 queries see half of the keys: 64 x 64 + 64 x 128 scores.
    (
        "scaled_dot_product_attention",
        [(1, 128, 7), (1, 128, 7), (1, 128, 7)],
        (1, 128, 7),
        (False, True, 1.0, 0.0),
        12288 * 2 * 14,
        [12288 * 2 * 14, 12288 * 14, 12288 * 14],
    ),
    # As above, of 2 heads of size 7; the three gradients are one.
    (
        "self_attention",
        [(11, 3, 42)],
        (11, 3, 14),
        (2, False, False, 1.0, 0.0),
        198 * 2 * 14,
        [198 * 2 * 28],
    ),
    # 2 steps of 3 samples: 6 rows. Input 5, hidden 7.
    ("rnn", [(2, 3, 5), (3, 7), (7, 5), (7, 7)], (2, 3, 7), ("tanh", False), 420 + 588, [420, 0, 420, 2 * 588]),
    (
        "lstm",
        [(2, 3, 5), (3, 7), (3, 7), (28, 5), (28, 7), (28,), (28,)],
        (3, 3, 7),
        (False,),
        1680 + 2352 + 2 * 168,
        [1680, 0, 0, 1680, 2 * 2352, 168, 168],
    ),
    (
        "gru",
        [(2, 3, 5), (3, 7), (21, 5), (21, 7), (21,), (21,)],
        (2, 3, 7),
        (False,),
        1260 + 1764 + 2 * 126,
        [1260, 0, 1260, 2 * 1764, 126, 126],
    ),
    # A square one, where weights and states are of one shape.
    ("rnn", [(1, 2, 2), (2, 2), (2, 2), (2, 2)], (1, 2, 2), ("relu", True), 32, [16, 0, 16, 32]),
    # 3 rows: (3, 2)(2, 7 * 5), then for each row (7, 5)(5). Backward: (3, 7)(7, 2 * 5) first, for both inputs.
    (
        "bilinear",
        [(3, 2), (3, 5), (7, 2, 5), (7,)],
        (3, 7),
        (),
        420 + 210 + 21,
        [420 + 60, 60, 420 + 30, 21],
    ),
]


@pytest.mark.parametrize(("name", "shapes", "output", "options", "forward", "gradients"), BY_HAND)
def test_products_by_hand(
    name: str,
    shapes: list[tuple[int, ...]],
    output: tuple[int, ...],
    options: tuple[Any, ...],
    forward: int,
    gradients: list[int],
) -> None:
    operation = OPERATIONS[name]
    assert count_flops(operation, tuple(shapes), output, options) == (forward, tuple(gradients))
    # The shapes are ones that the operation takes.
    result, _ = operation.forward(*(np.ones(shape) for shape in shapes), *options)
    assert result.shape == output


class CountingMatmul:
    """Stands in for `np.matmul` and counts."""

    def __init__(self) -> None:
        self.flops = 0

    def __call__(self, a: Any, b: Any, **options: Any) -> Any:
        product = np.matmul(a, b, **options)
        self.flops += 2 * math.prod(product.shape) * a.shape[-1]
        return product


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(150, 150), (70, 200), (200, 70)])
def test_attention_computes_what_is_counted(
    monkeypatch: pytest.MonkeyPatch, is_causal: bool, num_queries: int, num_keys: int
) -> None:
    from ddp_bp.engine.ops import attention

    counting = CountingMatmul()
    proxy = type("Proxy", (), {"__getattr__": lambda _, name: getattr(np, name), "matmul": counting})()
    monkeypatch.setattr(attention, "np", proxy)
    operation = OPERATIONS["scaled_dot_product_attention"]
    options = (False, is_causal, 1.0, 0.0)
    arrays = [np.ones((2, 3, n, size)) for n, size in ((num_queries, 4), (num_keys, 4), (num_keys, 6))]
    output, saved = operation.forward(*arrays, *options)
    forward, gradients = count_flops(operation, tuple(a.shape for a in arrays), output.shape, options)
    assert counting.flops == forward
    assert operation.vjp is not None
    operation.vjp(np.ones_like(output), saved, (True, True, True))
    assert counting.flops == forward + sum(gradients)
