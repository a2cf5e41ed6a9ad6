"""The bilinear form of two inputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ddp_bp.engine.ops.operation import Array, Flops, Gradients, Needs, Operation, describe
from ddp_bp.errors import DtypeError, ShapeError


def _rows(a: Array) -> Array:
    return a.reshape(math.prod(a.shape[:-1]), a.shape[-1])


def _bilinear(a: Array, b: Array, weight: Array, *biases: Array) -> tuple[Array, Any]:
    """output[..., o] = a[..., i] weight[o, i, j] b[..., j] + bias[o]."""
    got = f"bilinear got {', '.join(describe(array) for array in (a, b, weight, *biases))}"
    expected = (
        "it takes inputs (..., in1) and (..., in2), a weight (out, in1, in2) and perhaps a bias (out,), of one "
        "floating dtype"
    )
    if any(array.dtype != a.dtype or a.dtype.kind != "f" for array in (a, b, weight, *biases)):
        raise DtypeError(f"{got}; {expected}")
    if (
        min(a.ndim, b.ndim) < 1
        or weight.ndim != 3
        or a.shape[:-1] != b.shape[:-1]
        or (a.shape[-1], b.shape[-1]) != weight.shape[1:]
        or any(bias.shape != weight.shape[:1] for bias in biases)
    ):
        raise ShapeError(f"{got}; {expected}")
    num_out, size_a, size_b = weight.shape
    rows_a, rows_b = _rows(a), _rows(b)
    # One product over all rows, then for each row one with its own matrix (out, in2).
    matrices = rows_a.dot(weight.transpose(1, 0, 2).reshape(size_a, num_out * size_b))
    output = np.matmul(matrices.reshape(len(rows_a), num_out, size_b), rows_b[:, :, None])[:, :, 0]
    if biases:
        output += biases[0]
    return output.reshape(*a.shape[:-1], num_out), (a, b, weight, bool(biases))


def _bilinear_vjp(gradient: Array, saved: Any, needs: Needs, out: Any) -> Gradients:
    a, b, weight, has_bias = saved
    num_out, size_a, size_b = weight.shape
    rows_a, rows_b, incoming = _rows(a), _rows(b), _rows(gradient)
    grad_a = grad_b = grad_weight = None
    if needs[0] or needs[1]:
        matrices = incoming.dot(weight.reshape(num_out, size_a * size_b)).reshape(len(rows_a), size_a, size_b)
        if needs[0]:
            grad_a = np.matmul(matrices, rows_b[:, :, None])[:, :, 0].reshape(a.shape)
        if needs[1]:
            grad_b = np.matmul(rows_a[:, None, :], matrices)[:, 0].reshape(b.shape)
    if needs[2]:
        pairs = (rows_a[:, :, None] * rows_b[:, None, :]).reshape(len(rows_a), size_a * size_b)
        home = None if out[0] is None else out[0].reshape(num_out, size_a * size_b)
        product = np.dot(incoming.T, pairs, out=home)
        grad_weight = product.reshape(weight.shape) if out[0] is None else out[0]
    if not has_bias:
        return grad_a, grad_b, grad_weight
    return grad_a, grad_b, grad_weight, np.add.reduce(incoming, axis=0, out=out[1]) if needs[3] else None


def _bilinear_flops(shapes: tuple[tuple[int, ...], ...], output: tuple[int, ...]) -> Flops:
    num_rows, (num_out, size_a, size_b) = math.prod(output[:-1]), shapes[2]
    triples, pairs = 2 * num_rows * num_out * size_a * size_b, 2 * num_rows * size_a * size_b
    bias = (num_rows * num_out,) * (len(shapes) - 3)
    forward = triples + 2 * num_rows * num_out * size_b + sum(bias)
    return forward, (triples + pairs, pairs, triples + pairs // 2, *bias)


BILINEAR = Operation(
    "bilinear",
    _bilinear,
    _bilinear_vjp,
    "inputs (..., in1) and (..., in2), a weight (out, in1, in2) and perhaps a bias (out,)",
    reads=(0, 1, 2),
    writes=(2, 3),
    flops=_bilinear_flops,
)

OPERATIONS = (BILINEAR,)
