"""How much arithmetic an operation does: a convention for counting, and the formulas that most operations share.

`flops(shapes, output_shape, *options)` gives the number of floating-point operations of the forward function, and of
the gradient of each input, which counts where that gradient is computed. A product-and-add is two; an exponential, a
division or a comparison is one, as is usual: the counts compare products with each other, and not with functions.

Where gradients share a product, it counts with the first of them. A formula counts products and biases; the functions
between them (softmax, gates) are left out as small.

An operation without a formula counts one for each element of the largest array that takes part, in forward and in each
gradient: right for elementwise functions and reductions. Operations that only move elements count none.
"""

from __future__ import annotations

import math
from typing import Any

from ddp_bp.engine.ops.operation import Flops, Operation

Shape = tuple[int, ...]


def count_flops(operation: Operation, shapes: tuple[Shape, ...], output: Shape, options: tuple[Any, ...]) -> Flops:
    """The operations of `operation` on inputs of `shapes`: (forward, one number for the gradient of each input)."""
    if operation.is_view:
        return no_flops(shapes, output)
    if operation.flops is not None:
        return operation.flops(shapes, output, *options)
    largest = max(math.prod(shape) for shape in (output, *shapes))
    return largest, (largest,) * len(shapes)


def convolution_flops(shapes: tuple[Shape, ...], output: Shape, *options: Any) -> Flops:  # noqa: ARG001
    """Of a convolution of (input, weight, bias or nothing): every output element is a product with one filter."""
    products = 2 * math.prod(output) * math.prod(shapes[1][1:])
    bias = (math.prod(output),) * (len(shapes) - 2)
    return products + sum(bias), (products, products, *bias)


def transposed_convolution_flops(shapes: tuple[Shape, ...], output: Shape, *options: Any) -> Flops:  # noqa: ARG001
    """Of a transposed convolution: every input element is spread by one filter."""
    products = 2 * math.prod(shapes[0]) * math.prod(shapes[1][1:])
    bias = (math.prod(output),) * (len(shapes) - 2)
    return products + sum(bias), (products, products, *bias)


def recurrent_flops(shapes: tuple[Shape, ...], output: Shape, *options: Any) -> Flops:  # noqa: ARG001
    """Of a recurrent layer of (input, states, weight_ih, weight_hh, biases or nothing).

    The product that carries the gradient from step to step is part of every backward; it counts with weight_hh.
    """
    # The weights and biases are two or four.
    num_states = 1 + len(shapes) % 2
    weight_ih, weight_hh, *biases = shapes[1 + num_states :]
    num_rows = shapes[0][0] * shapes[0][1]
    of_inputs, of_states = (2 * num_rows * math.prod(weight) for weight in (weight_ih, weight_hh))
    of_biases = tuple(num_rows * math.prod(bias) for bias in biases)
    gradients = (of_inputs, *[0] * num_states, of_inputs, 2 * of_states, *of_biases)
    return of_inputs + of_states + sum(of_biases), gradients


def no_flops(shapes: tuple[Shape, ...], output: Shape, *options: Any) -> Flops:  # noqa: ARG001
    """The formula of operations that only move elements."""
    return 0, (0,) * len(shapes)
