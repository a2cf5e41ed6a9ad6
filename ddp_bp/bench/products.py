"""The matrix products of a multilayer perceptron's step and nothing else, which no engine on this BLAS can do without.

Each layer multiplies its input by its weights, backward the gradient of its output by its input and, but for the first
layer, by the weights: what the engine asks of BLAS, into memory that is there already.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ddp_bp.bench.models import BenchModel
from ddp_bp.bench.race import Seconds

_SEED = 1

Array = npt.NDArray[Any]


class Products:
    """The products of one rank's step, on made-up values.

    `by_columns`: a batch is stored as (width, samples), and otherwise as (samples, width). BLAS is faster with one or
    the other, depending on the shapes, and the engine chooses by layer.
    """

    def __init__(self, model: BenchModel, *, by_columns: bool, num_shards: int = 1) -> None:
        """`num_shards`: into how many shards of one size the batch of the rank is cut, whose products come in turn."""
        rng = np.random.default_rng(_SEED)
        batch, self._num_shards = model.batch_per_rank // num_shards, num_shards

        def made_up(*shape: int) -> Array:
            return rng.standard_normal(shape, np.float32)

        def activations(width: int) -> Array:
            """(samples, width), stored either way."""
            return made_up(width, batch).T if by_columns else made_up(batch, width)

        inputs, gradients = ([activations(width) for width in model.widths] for _ in range(2))
        forward, backward = [], []
        for number, (width, next_width) in enumerate(pairwise(model.widths)):
            weight, output_gradient = made_up(next_width, width), gradients[number + 1]
            forward.append((inputs[number], weight.T, activations(next_width)))
            backward.append((output_gradient.T, inputs[number], made_up(next_width, width)))
            if number:
                backward.append((output_gradient, weight, gradients[number]))
        products = [*forward, *reversed(backward)]
        # NumPy's `out` must be stored row by row.
        self._products = [(a, b, out) if out.flags.c_contiguous else (b.T, a.T, out.T) for a, b, out in products]

    def steps(self, count: int) -> None:
        """The products of `count` steps."""
        for _ in range(count * self._num_shards):
            for a, b, out in self._products:
                np.dot(a, b, out=out)

    @property
    def num_operations(self) -> int:
        """Floating-point operations of a step; a product-and-add is two."""
        return self._num_shards * sum(2 * out.size * int(a.shape[1]) for a, _, out in self._products)


def both_ways(model: BenchModel, num_shards: int = 1) -> list[Products]:
    """The products of a rank with its batch stored by rows and by columns, of which the faster counts."""
    return [Products(model, by_columns=by_columns, num_shards=num_shards) for by_columns in (False, True)]


def of_the_faster(seconds: Iterable[Seconds]) -> Seconds:
    """Of the times (blocks,) of several contestants those with the smallest median."""
    return min(seconds, key=lambda blocks: float(np.median(blocks)))
