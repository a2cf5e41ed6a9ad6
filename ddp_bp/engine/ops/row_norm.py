"""Layer, RMS and group norm: rows of a sample brought to mean 0 and variance 1, or to mean square 1.

J. Ba, J. Kiros and G. Hinton, "Layer normalization", 2016; B. Zhang and R. Sennrich, "Root mean square layer
normalization", 2019; Y. Wu and K. He, "Group normalization", 2018. All of them see the input as (B, R, K): B samples of
R rows of K elements, where R is 1 except in group norm, with weights (R, K) or none.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ddp_bp.engine.ops.layout import block_length, row_blocks
from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation, describe
from ddp_bp.errors import DtypeError, ShapeError

# Rows whose mean is this many deviations: its rounding would be seen in what is centred by it.
_FAR = 32


class _Saved(NamedTuple):
    rows: Array
    """(B, R, K)."""
    mean: Array | None
    """(B, R, 1); None where rows are not centred."""
    inverse: Array
    """One over the root of the mean square with eps: (B, R, 1)."""
    weight: Array | None
    """(R, K), a copy."""
    shape: tuple[int, ...]
    parameter_shapes: tuple[tuple[int, ...], ...]


def _normalize(rows: Array, centre: bool, eps: float, weight: Array | None, bias: Array | None) -> tuple[Array, Any]:
    """The normalised rows, times `weight` plus `bias` (R, K), and their means and inverse deviations."""
    num_samples, num_rows, size = rows.shape
    output = np.empty(rows.shape, rows.dtype)
    means = np.empty((num_samples, num_rows, 1), rows.dtype) if centre else None
    inverses = np.empty((num_samples, num_rows, 1), rows.dtype)
    weights, biases = _for_block(weight, rows), _for_block(bias, rows)
    ones = np.ones(size, rows.dtype)
    for block in row_blocks(num_samples, num_rows * size):
        part, result, inverse = rows[block], output[block], inverses[block]
        if means is None:
            np.copyto(result, part)
        else:
            mean = means[block]
            np.dot(part.reshape(-1, size), ones, out=mean.reshape(-1))
            mean /= size
            np.subtract(part, mean, out=result)
        _deviations(result, eps, out=inverse)
        if means is not None:
            far = (np.abs(mean) > _FAR * inverse)[:, :, 0]
            if far.any():
                mean[far] += (result[far].dot(ones) / size)[:, None]
                centred = part[far] - mean[far]
                result[far] = centred
                inverse[far] = _deviations(centred, eps)
        np.divide(1, inverse, out=inverse)
        result *= inverse
        if weights is not None:
            result *= weights[: len(part)]
        if biases is not None:
            result += biases[: len(part)]
    return output, (means, inverses)


def _deviations(centred: Array, eps: float, out: Array | None = None) -> Array:
    """The roots of the mean squares, with eps, along the last axis, which is kept."""
    if out is None:
        out = np.empty((*centred.shape[:-1], 1), centred.dtype)
    np.vecdot(centred, centred, out=out[..., 0])
    out /= centred.shape[-1]
    out += eps
    return np.sqrt(out, out=out)


def _for_block(parameter: Array | None, rows: Array) -> Array | None:
    """(R, K) repeated for each sample of a block: operands of one shape are gone through at twice the speed."""
    if parameter is None:
        return None
    num_samples, *shape = rows.shape
    return np.broadcast_to(parameter, (min(num_samples, block_length(math.prod(shape))), *shape)).copy()


def _normalize_vjp(gradient: Array, saved: _Saved, needs: Needs) -> Gradients:
    """(g w - mean(g w) - n mean(g w n)) / deviation, with n the normalised rows, w the weights and g the gradient.

    No pass makes g w or n for the means' sake: they are products with w of g and of g (x - mean).
    """
    rows, means, inverses, weight, shape, parameter_shapes = saved
    num_samples, num_rows, size = rows.shape
    gradients = gradient.reshape(rows.shape)
    result = np.empty(rows.shape, rows.dtype) if needs[0] else None
    grad_weight, grad_bias = np.zeros((2, num_rows, size), rows.dtype)
    weights = _for_block(weight, rows)
    factors = np.ones((num_rows, size), rows.dtype) if weight is None else weight
    step = min(num_samples, block_length(num_rows * size))
    scratch = np.empty((2, step, num_rows, size), rows.dtype)
    ones = np.ones(step, rows.dtype)
    for block in row_blocks(num_samples, num_rows * size):
        incoming, inverse = gradients[block], inverses[block]
        length = len(incoming)
        centred = rows[block] if means is None else np.subtract(rows[block], means[block], out=scratch[0, :length])
        product = np.multiply(incoming, centred, out=scratch[1, :length])
        if len(needs) > 1 and needs[1]:
            grad_weight += np.matmul(inverse.transpose(1, 2, 0), product.transpose(1, 0, 2))[:, 0]
        if len(needs) > 2 and needs[2]:
            grad_bias += ones[:length].dot(incoming.reshape(length, -1)).reshape(num_rows, size)
        if result is None:
            continue
        along = np.vecdot(product, factors)[..., None]
        along /= size
        along *= inverse
        along *= inverse
        along *= inverse
        np.multiply(centred, along, out=product)
        part = result[block]
        if weights is None:
            np.multiply(incoming, inverse, out=part)
        else:
            np.multiply(incoming, weights[:length], out=part)
            part *= inverse
        part -= product
        if means is not None:
            along = np.vecdot(incoming, factors)[..., None]
            along /= size
            along *= inverse
            part -= along
    parameters = [
        _folded(total, wanted) if needed else None
        for total, wanted, needed in zip((grad_weight, grad_bias), parameter_shapes, needs[1:], strict=False)
    ]
    return None if result is None else result.reshape(shape), *parameters


def _folded(total: Array, shape: tuple[int, ...]) -> Array:
    """(R, K) summed over what shares a parameter: as it is for layer norm, over the pixels of a channel otherwise."""
    count = math.prod(shape)
    if total.size == count:
        return total.reshape(shape)
    return np.asarray(np.add.reduce(total.reshape(count, -1), axis=1)).reshape(shape)


def _check_dtypes(name: str, a: Array, parameters: list[Array]) -> None:
    if any(array.dtype != a.dtype or a.dtype.kind != "f" for array in (a, *parameters)):
        got = ", ".join(describe(array) for array in (a, *parameters))
        raise DtypeError(f"{name} got {got}; it takes an input and parameters of one floating dtype")


def _over_last_axes(name: str, a: Array, parameters: list[Array], shape: Any, eps: float, centre: bool) -> Any:
    _check_dtypes(name, a, parameters)
    shape = tuple(shape)
    is_suffix = bool(shape) and a.shape[-len(shape) :] == shape and min(shape) > 0
    if not is_suffix or any(parameter.shape != shape for parameter in parameters):
        got = "".join(f" and a parameter of {describe(parameter)}" for parameter in parameters)
        raise ShapeError(
            f"{name} got an input of {describe(a)}{got} with normalized_shape {shape}; it takes an input (..., "
            f"*normalized_shape), not empty there, and parameters of that shape"
        )
    size = math.prod(shape)
    rows = a.reshape(a.size // size, 1, size)
    weight, bias = (*(parameter.reshape(1, size) for parameter in parameters), None, None)[:2]
    output, (means, inverses) = _normalize(rows, centre, eps, weight, bias)
    saved_weight = None if weight is None else weight.copy()
    shapes = tuple(parameter.shape for parameter in parameters)
    return output.reshape(a.shape), _Saved(rows, means, inverses, saved_weight, a.shape, shapes)


def _layer_norm(a: Array, *rest: Any) -> tuple[Array, Any]:
    *parameters, shape, eps = rest
    return _over_last_axes("layer_norm", a, parameters, shape, eps, centre=True)  # type: ignore[no-any-return]


def _rms_norm(a: Array, *rest: Any) -> tuple[Array, Any]:
    *parameters, shape, eps = rest
    return _over_last_axes("rms_norm", a, parameters, shape, eps, centre=False)  # type: ignore[no-any-return]


def _group_norm(a: Array, *rest: Any) -> tuple[Array, Any]:
    *parameters, num_groups, eps = rest
    _check_dtypes("group_norm", a, parameters)
    fits = a.ndim >= 2 and num_groups > 0 and a.shape[1] % num_groups == 0 and min(a.shape[1:]) > 0
    if not fits or any(parameter.shape != a.shape[1:2] for parameter in parameters):
        got = "".join(f" and a parameter of {describe(parameter)}" for parameter in parameters)
        raise ShapeError(
            f"group_norm got an input of {describe(a)}{got} with num_groups {num_groups}; it takes an input (N, C, "
            "*spatial), not empty but for N, with C a multiple of num_groups, and parameters (C,)"
        )
    size = math.prod(a.shape[1:]) // num_groups
    num_pixels = math.prod(a.shape[2:])
    rows = a.reshape(len(a), num_groups, size)
    spread = [np.repeat(parameter, num_pixels).reshape(num_groups, size) for parameter in parameters]
    weight, bias = (*spread, None, None)[:2]
    output, (means, inverses) = _normalize(rows, True, eps, weight, bias)
    shapes = tuple(parameter.shape for parameter in parameters)
    return output.reshape(a.shape), _Saved(rows, means, inverses, weight, a.shape, shapes)


_PARAMETERS = "perhaps a weight and a bias"

LAYER_NORM = Operation(
    "layer_norm", _layer_norm, _normalize_vjp, f"an input, {_PARAMETERS}, normalized_shape and eps", reads=(0,)
)
RMS_NORM = Operation(
    "rms_norm", _rms_norm, _normalize_vjp, "an input, perhaps a weight, normalized_shape and eps", reads=(0,)
)
GROUP_NORM = Operation(
    "group_norm", _group_norm, _normalize_vjp, f"an input, {_PARAMETERS}, num_groups and eps", reads=(0,)
)

OPERATIONS = (LAYER_NORM, RMS_NORM, GROUP_NORM)
