"""Losses of class numbers and of class probabilities.

The class axis of logits is the last of a single one, else the second: (C,), (N, C) or (N, C, ...), with class numbers
of shape (), (N,) or (N, ...). Inside, logits are rows (M, C) with M class numbers.

A sample of class y counts `weight[y]` times, and one of the class `ignore_index` does not count. Means divide by the
sum of these counts, as in PyTorch. Class weights are options and not inputs: no gradient flows to them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ddp_bp.engine.ops.constants import multiples, ones
from ddp_bp.engine.ops.layout import block_length, row_blocks
from ddp_bp.engine.ops.losses import REDUCTION, check_alike, of_each, reduced
from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation, describe
from ddp_bp.errors import DtypeError, ShapeError


def _rows(a: Array) -> Array:
    """`a` as contiguous (M, C)."""
    if a.ndim != 2:
        moved = a[None] if a.ndim == 1 else np.moveaxis(a, 1, -1)
        a = moved.reshape(math.prod(moved.shape[:-1]), moved.shape[-1])
    return np.ascontiguousarray(a)


def _unrows(rows: Array, shape: tuple[int, ...]) -> Array:
    """What `_rows` made of an array of `shape`, arranged as that was."""
    if len(shape) <= 2:
        return rows.reshape(shape)
    return np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


def _class_numbers(name: str, logits: Array, target: Array, ignore_index: int) -> tuple[Array, Array | None]:
    """`target` as (M,) of native integers after checking it, and which of them count (None: all); the others are 0."""
    if not logits.ndim or target.shape != logits.shape[:1] * (logits.ndim > 1) + logits.shape[2:]:
        raise ShapeError(
            f"{name} got logits of {describe(logits)} with a target of {describe(target)}; "
            "it takes logits (N, C) with a target (N,) of class numbers, or (N, C, ...) with (N, ...), or (C,) with ()"
        )
    if target.dtype.kind not in "iu" or logits.dtype.kind != "f":
        raise DtypeError(
            f"{name} got logits of {logits.dtype} with a target of {target.dtype}; "
            "it takes floating logits with a target of integer class numbers"
        )
    num_classes = logits.shape[0] if logits.ndim == 1 else logits.shape[1]
    numbers = target.astype(np.intp, copy=False).reshape(-1)
    counted = None
    # Seen as unsigned, a negative number is large: one comparison checks both ends.
    if numbers.size and (0 <= ignore_index < num_classes or np.maximum.reduce(numbers.view(np.uintp)) >= num_classes):
        counted = numbers != ignore_index
        numbers = numbers * counted
        if np.maximum.reduce(numbers.view(np.uintp)) >= num_classes:
            raise ShapeError(
                f"{name} got class numbers from {numbers.min()} to {numbers.max()} with logits of "
                f"{describe(logits)}; it takes class numbers in [0, {num_classes}), or {ignore_index} to ignore one"
            )
    return numbers, counted


def check_weight(name: str, weight: Array | None, logits: Array) -> None:
    """Raises ShapeError unless there is one weight for each class."""
    num_classes = 0 if not logits.ndim else logits.shape[0] if logits.ndim == 1 else logits.shape[1]
    if weight is not None and weight.shape != (num_classes,):
        raise ShapeError(
            f"{name} got a weight of {describe(weight)} with logits of {describe(logits)}; "
            f"it takes one weight for each class, ({num_classes},)"
        )


def _sample_weights(numbers: Array, counted: Array | None, weight: Array | None, dtype: Any) -> Array | None:
    """How often each sample counts, or None if each counts once."""
    if weight is None:
        return None if counted is None else counted.astype(dtype)
    of_samples: Array = weight[numbers].astype(dtype, copy=False)
    return of_samples if counted is None else of_samples * counted


def class_count(target: Array, weight: Array | None, ignore_index: int) -> float:
    """What the mean of a loss divides by, for class numbers that the loss has taken."""
    counted = target != ignore_index
    if weight is None:
        return float(np.count_nonzero(counted))
    return float(np.add.reduce(weight[target[counted]], dtype=np.float64))


def _cross_entropy(
    logits: Array,
    target: Array,
    reduction: str,
    weight: Array | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Array, Any]:
    numbers, counted = _class_numbers("cross_entropy", logits, target, ignore_index)
    check_weight("cross_entropy", weight, logits)
    of_samples = _sample_weights(numbers, counted, weight, logits.dtype)
    rows = _rows(logits)
    parts = None
    if label_smoothing and rows.size:
        # Every class gets an equal part of `label_smoothing`, times its own weight.
        parts = np.full(rows.shape[1], label_smoothing / rows.shape[1], rows.dtype)
        if weight is not None:
            parts *= weight
    if not rows.size:
        exponentials, totals = np.empty_like(rows), np.ones(len(rows), rows.dtype)
        picked = smoothed = np.zeros(len(rows), rows.dtype)
    elif len(rows) <= block_length(rows.shape[1]):
        exponentials, totals, picked, smoothed = _shifted(rows, numbers, parts, None)
    else:
        exponentials = np.empty_like(rows)
        found = [
            _shifted(rows[block], numbers[block], parts, exponentials[block])[1:] for block in row_blocks(*rows.shape)
        ]
        totals, picked, smoothed = map(np.concatenate, zip(*found, strict=True))
    logs = np.log(totals)
    losses = logs - picked
    if counted is not None:
        # Not a product with 0, which would make NaN of an infinite loss.
        losses[~counted] = 0
    if of_samples is not None:
        losses *= of_samples
    if parts is not None:
        losses *= 1.0 - label_smoothing
        logs *= np.add.reduce(parts)
        logs -= smoothed
        if counted is not None:
            logs[~counted] = 0
        losses += logs
    count = float(numbers.size if of_samples is None else np.add.reduce(of_samples))
    output = losses.reshape(target.shape) if reduction == "none" else reduced(losses, reduction, count)
    samples = (numbers, counted, of_samples)
    return output, (exponentials, totals, samples, parts, label_smoothing, reduction, count, logits.shape)


def _shifted(rows: Array, numbers: Array, parts: Array | None, out: Array | None) -> tuple[Array, Array, Array, Array]:
    """exp(rows - their maxima), in `out` if there is one, and its sums; and of rows - maxima those at `numbers` and the
    products with `parts` (anything if None)."""
    num_rows, num_classes = rows.shape
    starts = multiples(num_rows, num_classes)
    # On short rows argmax takes a third of the time of maximum.reduce.
    out = np.subtract(rows, rows.take(starts + rows.argmax(1)).reshape(num_rows, 1), out=out)
    picked = out.take(starts + numbers)
    smoothed = picked if parts is None else out.dot(parts)
    np.exp(out, out=out)
    return out, np.asarray(out.dot(ones(num_classes, out.dtype))), picked, smoothed


def _cross_entropy_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    exponentials, totals, samples, parts, label_smoothing, reduction, count, shape = saved
    numbers, counted, of_samples = samples
    # One for each sample, or one for all of them.
    scales = of_each(gradient, reduction, count).reshape(-1)
    own = scales if of_samples is None else scales * of_samples
    if parts is None:
        result = exponentials * (own / totals)[:, None]
    else:
        if counted is not None:
            scales = scales * counted
        own = own * (1.0 - label_smoothing)
        result = exponentials * ((own + scales * np.add.reduce(parts)) / totals)[:, None]
        result -= scales[:, None] * parts
    if result.size:
        result.reshape(-1)[multiples(*result.shape) + numbers] -= own
    return _unrows(result, shape), None


def _soft_cross_entropy(
    logits: Array, target: Array, reduction: str, weight: Array | None = None, label_smoothing: float = 0.0
) -> tuple[Array, Any]:
    check_alike("soft_cross_entropy", logits, target)
    if not logits.ndim:
        raise ShapeError(f"soft_cross_entropy got logits of {describe(logits)}; it takes (C,), (N, C) or (N, C, ...)")
    check_weight("soft_cross_entropy", weight, logits)
    rows = _rows(logits)
    wanted = _rows(target) * (1.0 - label_smoothing)
    if label_smoothing:
        wanted += label_smoothing / rows.shape[1]
    if weight is not None:
        weight = weight.astype(rows.dtype, copy=False)
        wanted *= weight
    if rows.size == 0:
        logs = np.zeros_like(rows)
    else:
        logs = rows - np.maximum.reduce(rows, axis=1, keepdims=True)
        logs -= np.log(np.add.reduce(np.exp(logs), axis=1, keepdims=True))
    losses = np.negative(np.add.reduce(wanted * logs, axis=1))
    shape = logits.shape
    output = (
        losses.reshape(shape[:1] * (len(shape) > 1) + shape[2:])
        if reduction == "none"
        else reduced(losses, reduction, len(rows))
    )
    return output, (logs, wanted, weight, label_smoothing, reduction, shape)


def _soft_cross_entropy_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    logs, wanted, weight, label_smoothing, reduction, shape = saved
    scale = of_each(gradient, reduction, len(logs))
    if reduction == "none":
        scale = scale.reshape(-1, 1)
    grad_logits = grad_target = None
    if needs[0]:
        grad_logits = np.exp(logs)
        grad_logits *= np.add.reduce(wanted, axis=1, keepdims=True)
        grad_logits -= wanted
        grad_logits *= scale
        grad_logits = _unrows(grad_logits, shape)
    if needs[1]:
        grad_target = logs * (scale * (label_smoothing - 1.0))
        if weight is not None:
            grad_target *= weight
        grad_target = _unrows(grad_target, shape)
    return grad_logits, grad_target


def _nll(
    log_probabilities: Array, target: Array, reduction: str, weight: Array | None = None, ignore_index: int = -100
) -> tuple[Array, Any]:
    numbers, counted = _class_numbers("nll_loss", log_probabilities, target, ignore_index)
    check_weight("nll_loss", weight, log_probabilities)
    of_samples = _sample_weights(numbers, counted, weight, log_probabilities.dtype)
    rows = _rows(log_probabilities)
    places = np.arange(len(numbers))
    losses = np.zeros(0, rows.dtype) if not numbers.size else np.negative(rows[places, numbers])
    if counted is not None:
        losses[~counted] = 0
    if of_samples is not None:
        losses *= of_samples
    count = float(numbers.size if of_samples is None else np.add.reduce(of_samples))
    output = losses.reshape(target.shape) if reduction == "none" else reduced(losses, reduction, count)
    return output, (places, numbers, of_samples, reduction, count, rows.shape, log_probabilities.shape)


def _nll_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:  # noqa: ARG001
    places, numbers, of_samples, reduction, count, rows_shape, shape = saved
    scale = of_each(gradient, reduction, count)
    if of_samples is not None:
        scale = scale.reshape(-1) * of_samples
    result = np.zeros(rows_shape, gradient.dtype)
    result[places, numbers] = np.negative(scale.reshape(-1))
    return _unrows(result, shape), None


_CLASS_NUMBERS = f"logits (N, C, ...), a target (N, ...) of class numbers {REDUCTION}"

CROSS_ENTROPY = Operation("cross_entropy", _cross_entropy, _cross_entropy_vjp, _CLASS_NUMBERS, reads=(1,))
SOFT_CROSS_ENTROPY = Operation(
    "soft_cross_entropy",
    _soft_cross_entropy,
    _soft_cross_entropy_vjp,
    f"logits (N, C, ...), class probabilities of the same shape {REDUCTION}",
)
NLL_LOSS = Operation("nll_loss", _nll, _nll_vjp, _CLASS_NUMBERS, reads=(1,))

OPERATIONS = (CROSS_ENTROPY, SOFT_CROSS_ENTROPY, NLL_LOSS)
