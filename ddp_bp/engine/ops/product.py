"""Matrix products: matmul with batch axes, and the fused affine map of a linear layer.

Where an output is wider than high, the linear layer computes it transposed: the weight then is the left factor, which
OpenBLAS takes at up to twice the speed when there are few rows, and rows of the product are long. The output is a view
of that in PyTorch's shape, and elementwise operations and the gradients keep its arrangement in memory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ddp_bp.engine.ops.constants import ones
from ddp_bp.engine.ops.operation import Array, Flops, Gradients, Needs, Operation, describe, unbroadcast
from ddp_bp.errors import DtypeError, ShapeError


def _matmul(a: Array, b: Array) -> tuple[Array, Any]:
    if a.dtype != b.dtype:
        raise TypeError("the dtypes differ")
    return np.matmul(a, b), (a, b)


def _matmul_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    a, b = saved
    # A vector takes part as a matrix of one row (left) or one column (right).
    matrix_a = a[None, :] if a.ndim == 1 else a
    matrix_b = b[:, None] if b.ndim == 1 else b
    if b.ndim == 1:
        gradient = gradient[..., None]
    if a.ndim == 1:
        gradient = gradient[..., None, :]
    grad_a = grad_b = None
    if needs[0]:
        grad_a = unbroadcast(np.matmul(gradient, matrix_b.swapaxes(-1, -2)), matrix_a.shape).reshape(a.shape)
    if needs[1]:
        grad_b = unbroadcast(np.matmul(matrix_a.swapaxes(-1, -2), gradient), matrix_b.shape).reshape(b.shape)
    return grad_a, grad_b


def _matmul_flops(shapes: tuple[tuple[int, ...], ...], output: tuple[int, ...]) -> Flops:
    # Each of the three products is over the same triples (n, k, m).
    product = 2 * math.prod(output) * shapes[0][-1]
    return product, (product, product)


def _rows(a: Array) -> Array:
    return a.reshape(math.prod(a.shape[:-1]), a.shape[-1])


def _linear(a: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Any]:
    if weight.ndim != 2 or a.ndim < 1 or a.shape[-1] != weight.shape[1]:
        wanted = f"(..., {weight.shape[1]})" if weight.ndim == 2 else "(..., in)"
        raise ShapeError(
            f"linear got an input of {describe(a)} with a weight of {describe(weight)}; "
            f"it takes an input {wanted} with a weight (out, in)"
        )
    if a.dtype is not weight.dtype and a.dtype != weight.dtype:
        raise DtypeError(
            f"linear got an input of {a.dtype} with a weight of {weight.dtype}; give both the same dtype, "
            f"for instance with input.to({str(weight.dtype)!r})"
        )
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        raise ShapeError(
            f"linear got a bias of {describe(bias)} with a weight of {describe(weight)}; "
            f"it takes a bias ({weight.shape[0]},) {weight.dtype}"
        )
    # With more axes, a transposed output would have to be copied into their shape.
    if a.ndim == 2 and len(a) < len(weight):
        columns = weight.dot(a.T)
        if bias is not None:
            columns += bias[:, None]
        return columns.T, (a, weight, bias is not None)
    output = (a if a.ndim == 2 else _rows(a)).dot(weight.T)
    if bias is not None:
        output += bias
    if a.ndim != 2:
        output = output.reshape(*a.shape[:-1], weight.shape[0])
    return output, (a, weight, bias is not None)


def _linear_vjp(
    gradient: Array, saved: Any, needs: Needs, out: tuple[Array | None, ...] | list[Array | None]
) -> Gradients:
    a, weight, has_bias = saved
    rows, grad_rows = a, gradient
    if a.ndim != 2:
        rows, grad_rows = _rows(a), _rows(gradient)
    grad_weight = np.dot(grad_rows.T, rows, out=out[0]) if needs[1] else None
    grad_a = None
    if needs[0]:
        # Arranged as `a` is, since what made `a` will multiply the two.
        grad_a = grad_rows.dot(weight) if rows.flags.c_contiguous else weight.T.dot(grad_rows.T).T
        if a.ndim != 2:
            grad_a = grad_a.reshape(a.shape)
    if not has_bias:
        return grad_a, grad_weight
    grad_bias = np.dot(grad_rows.T, ones(len(grad_rows), gradient.dtype), out=out[1]) if needs[2] else None
    return grad_a, grad_weight, grad_bias


def _linear_limit(gradient: Array, saved: Any) -> float | None:
    """By Cauchy and Schwarz: an element of the weight's gradient is a product of a column of each of two matrices, and
    their norms are at most those of the matrices."""
    a, weight, _ = saved
    # Two reads of memory cost more than one of as much.
    if 4 * (a.size + gradient.size) > 3 * weight.size:
        return None
    return math.sqrt(_squares(a)) * math.sqrt(_squares(gradient))


def _squares(a: Array) -> float:
    # Whatever its arrangement, in the order in which it lies in memory.
    vector = a.ravel("K")
    return float(vector.dot(vector))


def _linear_flops(shapes: tuple[tuple[int, ...], ...], output: tuple[int, ...]) -> Flops:
    num_outputs = math.prod(output)
    product = 2 * num_outputs * shapes[1][1]
    bias = (num_outputs,) if len(shapes) > 2 else ()
    return product + sum(bias), (product, product, *bias)


MATMUL = Operation(
    "matmul",
    _matmul,
    _matmul_vjp,
    "two arrays of one dtype, (..., n, k) and (..., k, m), whose leading axes broadcast; vectors count as (k,)",
    reads=(0, 1),
    flops=_matmul_flops,
)
LINEAR = Operation(
    "linear",
    _linear,
    _linear_vjp,
    "an input (..., in), a weight (out, in) and perhaps a bias (out,), of one dtype",
    reads=(0, 1),
    writes=(1, 2),
    limit=_linear_limit,
    flops=_linear_flops,
)

OPERATIONS = (MATMUL, LINEAR)
