"""Batch norm: each channel brought to mean 0 and variance 1 over the batch, or by statistics given from outside.

S. Ioffe and C. Szegedy, "Batch normalization", ICML 2015. Everything goes over rows of pixels in blocks that fit the
cache. Layer, RMS and group norm, which work within a sample, are in `row_norm`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ddp_bp.engine.ops.layout import (
    block_length,
    channel_sums,
    channels_first,
    channels_last,
    for_rows,
    pixel_rows,
    row_blocks,
)
from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation, describe
from ddp_bp.errors import DtypeError, ShapeError


class _Saved(NamedTuple):
    images: Array
    mean: Array
    inverse: Array
    """One over the standard deviation, with eps: (C,)."""
    scale: Array
    """`inverse`, times the weight if there is one: (C,)."""
    num_parameters: int
    """2 with a weight and a bias, 1 with a weight alone, or 0."""
    num_all_axes: int


def batch_statistics(a: Array) -> tuple[Array, Array]:
    """The mean and the biased variance of each channel of (N, C), (N, C, L) or (N, C, H, W): two (C,) arrays."""
    _check("batch_norm", a, [])
    return _statistics(channels_last(a, a.ndim - 2))


def _statistics(images: Array) -> tuple[Array, Array]:
    num_pixels = images.size // images.shape[3] if images.size else 0
    if num_pixels < 2:
        raise ShapeError(
            f"batch_norm got {num_pixels} value(s) per channel in training; it takes 2 or more, since one value has no "
            "variance: use a larger batch or eval()"
        )
    mean = channel_sums(images)
    mean /= num_pixels
    rows, width = pixel_rows(images), images.shape[2]
    means, scratch = for_rows(mean, images), _scratch(rows)
    total = np.zeros(rows.shape[1], rows.dtype)
    # A product with ones sums rows in half the time of `add.reduce`.
    ones = np.ones(len(scratch), rows.dtype)
    for block in row_blocks(*rows.shape):
        part = rows[block]
        centred = np.subtract(part, means[: len(part)], out=scratch[: len(part)])
        total += ones[: len(part)].dot(np.square(centred, out=centred))
    variance = np.add.reduce(total.reshape(width, images.shape[3]), axis=0)
    variance /= num_pixels
    return mean, variance


def _check(name: str, a: Array, channels: list[Array]) -> None:
    expected = "an input (N, C), (N, C, L) or (N, C, H, W) and, for each channel, values (C,), of one floating dtype"
    got = f"{name} got an input of {describe(a)}"
    if channels:
        got += f" with values of {', '.join(describe(array) for array in channels)}"
    if any(array.dtype != a.dtype or a.dtype.kind != "f" for array in (a, *channels)):
        raise DtypeError(f"{got}; it takes {expected}")
    if not 2 <= a.ndim <= 4 or any(array.shape != a.shape[1:2] for array in channels) or a.shape[1] < 1:
        raise ShapeError(f"{got}; it takes {expected}")


def _normalize(images: Array, mean: Array, scale: Array, bias: Array | None) -> Array:
    output = np.empty_like(images)
    rows, results = pixel_rows(images), pixel_rows(output)
    means, scales = for_rows(mean, images), for_rows(scale, images)
    biases = None if bias is None else for_rows(bias, images)
    for block in row_blocks(*rows.shape):
        part = rows[block]
        result = np.subtract(part, means[: len(part)], out=results[block])
        result *= scales[: len(part)]
        if biases is not None:
            result += biases[: len(part)]
    return output


def _scratch(rows: Array) -> Array:
    return np.empty((min(len(rows), block_length(rows.shape[1])), rows.shape[1]), rows.dtype)


def _inverse(variance: Array, eps: float) -> Array:
    return np.asarray(1 / np.sqrt(variance + variance.dtype.type(eps)))


def _batch_norm(a: Array, *rest: Any) -> tuple[Array, Any]:
    """`statistics` are those of `a` itself, if they are known already; None to have them computed."""
    *affine, eps, statistics = rest
    _check("batch_norm", a, affine)
    images = channels_last(a, a.ndim - 2)
    mean, variance = _statistics(images) if statistics is None else statistics
    inverse = _inverse(variance, eps)
    scale = inverse * affine[0] if affine else inverse
    bias = affine[1] if len(affine) > 1 else None
    output = _normalize(images, mean, scale, bias)
    return channels_first(output, a.ndim - 2, a.ndim), _Saved(images, mean, inverse, scale, len(affine), a.ndim)


def _sums(images: Array, gradient: Array, mean: Array) -> tuple[Array, Array]:
    """For each channel, the sums of the gradient and of the gradient times the centred input."""
    rows, gradients, width = pixel_rows(images), pixel_rows(gradient), images.shape[2]
    means, scratch = for_rows(mean, images), _scratch(rows)
    total, product_total = np.zeros((2, rows.shape[1]), rows.dtype)
    ones = np.ones(len(scratch), rows.dtype)
    for block in row_blocks(*rows.shape):
        part, incoming = rows[block], gradients[block]
        product = np.subtract(part, means[: len(part)], out=scratch[: len(part)])
        product *= incoming
        product_total += ones[: len(part)].dot(product)
        total += ones[: len(part)].dot(incoming)
    pixels = (width, images.shape[3])
    return np.add.reduce(total.reshape(pixels), axis=0), np.add.reduce(product_total.reshape(pixels), axis=0)


def _batch_norm_vjp(gradient: Array, saved: _Saved, needs: Needs) -> Gradients:
    images, mean, inverse, scale, num_parameters, num_all_axes = saved
    incoming = channels_last(gradient, num_all_axes - 2)
    total, product_total = _sums(images, incoming, mean)
    grad_a = None
    if needs[0]:
        # The mean and the variance depend on the input, too: the gradient loses its part along either.
        num_pixels = images.size // images.shape[3]
        result = np.empty_like(images)
        rows, gradients, results = pixel_rows(images), pixel_rows(incoming), pixel_rows(result)
        means, gradient_means = for_rows(mean, images), for_rows(total / num_pixels, images)
        slopes = for_rows(product_total * np.square(inverse) / num_pixels, images)
        scales, scratch = for_rows(scale, images), _scratch(rows)
        for block in row_blocks(*rows.shape):
            part = rows[block]
            size = len(part)
            along = np.subtract(part, means[:size], out=scratch[:size])
            along *= slopes[:size]
            along += gradient_means[:size]
            outgoing = np.subtract(gradients[block], along, out=results[block])
            outgoing *= scales[:size]
        grad_a = channels_first(result, num_all_axes - 2, num_all_axes)
    parameters = (product_total * inverse, total)[:num_parameters]
    return grad_a, *(part if needed else None for part, needed in zip(parameters, needs[1:], strict=True))


def _batch_norm_eval(a: Array, mean: Array, variance: Array, *rest: Any) -> tuple[Array, Any]:
    *affine, eps = rest
    _check("batch_norm_eval", a, [mean, variance, *affine])
    images = channels_last(a, a.ndim - 2)
    inverse = _inverse(variance, eps)
    scale = inverse * affine[0] if affine else inverse
    bias = affine[1] if len(affine) > 1 else None
    output = _normalize(images, mean, scale, bias)
    return channels_first(output, a.ndim - 2, a.ndim), _Saved(images, mean, inverse, scale, len(affine), a.ndim)


def _batch_norm_eval_vjp(gradient: Array, saved: _Saved, needs: Needs) -> Gradients:
    images, mean, inverse, scale, num_parameters, num_all_axes = saved
    incoming = channels_last(gradient, num_all_axes - 2)
    grad_a = None
    if needs[0]:
        result = _normalize(incoming, np.zeros_like(scale), scale, None)
        grad_a = channels_first(result, num_all_axes - 2, num_all_axes)
    if not any(needs[1:]):
        return grad_a, *(None for _ in needs[1:])
    total, product_total = _sums(images, incoming, mean)
    statistics = (-total * scale, product_total * scale * np.square(inverse) * -0.5)
    parts = (*statistics, product_total * inverse, total)[: 2 + num_parameters]
    return grad_a, *(part if needed else None for part, needed in zip(parts, needs[1:], strict=True))


BATCH_NORM = Operation(
    "batch_norm",
    _batch_norm,
    _batch_norm_vjp,
    "an input (N, C, *spatial), perhaps a weight (C,) and a bias (C,), and eps",
    reads=(0,),
)
BATCH_NORM_EVAL = Operation(
    "batch_norm_eval",
    _batch_norm_eval,
    _batch_norm_eval_vjp,
    "an input (N, C, *spatial), a mean and a variance (C,), perhaps a weight (C,) and a bias (C,), and eps",
    reads=(0, 1),
)

OPERATIONS = (BATCH_NORM, BATCH_NORM_EVAL)
