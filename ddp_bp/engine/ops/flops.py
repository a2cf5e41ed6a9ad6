"""How much arithmetic an operation does: a convention for counting, and the formulas that most operations share.

`flops(shapes, output_shape, *options)` gives the number of floating-point operations of the forward function, and of
the gradient of each input, which counts where that gradient is computed. A product-and-add is two; an exponential, a
division or a comparison is one, as is usual: the counts compare products with each other, and not with functions.

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


def no_flops(shapes: tuple[Shape, ...], output: Shape, *options: Any) -> Flops:  # noqa: ARG001
    """The formula of operations that only move elements."""
    return 0, (0,) * len(shapes)
