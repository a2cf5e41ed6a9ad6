"""Losses between probabilities and between directions: binary cross-entropy, KL divergence, cosine embedding."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddp_bp.engine.ops.losses import REDUCTION, check_alike, of_each, reduced
from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation, describe
from ddp_bp.errors import DtypeError, ShapeError

# Keeps the cosine of a vector of zeros finite; PyTorch's value.
_EPSILON = 1e-12


def _fits(name: str, what: str, weight: Array | None, logits: Array) -> None:
    if weight is None:
        return
    try:
        fits = np.broadcast_shapes(weight.shape, logits.shape) == logits.shape
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(
            f"{name} got a {what} of {describe(weight)} with logits of {describe(logits)}; "
            f"it takes a {what} that broadcasts to the logits"
        )


def _binary_cross_entropy(
    logits: Array, target: Array, reduction: str, weight: Array | None = None, pos_weight: Array | None = None
) -> tuple[Array, Any]:
    name = "binary_cross_entropy_with_logits"
    check_alike(name, logits, target)
    _fits(name, "weight", weight, logits)
    _fits(name, "pos_weight", pos_weight, logits)
    # The sigmoid of -|x|. All is made of it, because both tails keep their precision in it, and exp never overflows.
    tail = np.asarray(np.abs(logits))
    np.negative(tail, out=tail)
    np.exp(tail, out=tail)
    bend = np.log1p(tail)
    tail /= 1 + tail
    # Before the bend is added, the large terms cancel exactly for targets of 0 and 1.
    losses = np.asarray(logits * target)
    np.subtract(np.maximum(logits, 0), losses, out=losses)
    losses += bend
    if pos_weight is not None:
        pos_weight = pos_weight.astype(logits.dtype, copy=False)
        # What each positive counts beyond once, times softplus(-x).
        losses += (pos_weight - 1) * target * (bend - np.minimum(logits, 0))
    if weight is not None:
        weight = weight.astype(logits.dtype, copy=False)
        losses *= weight
    return reduced(losses, reduction), (logits, target, tail, weight, pos_weight, reduction)


def _binary_cross_entropy_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    logits, target, tail, weight, pos_weight, reduction = saved
    scale = of_each(gradient, reduction, logits.size)
    if weight is not None:
        scale = scale * weight
    grad_logits = grad_target = None
    if needs[0]:
        # sigmoid(x) - target, where the sigmoid is the tail below 0 and 1 less the tail from there: first the whole
        # numbers, which cancel exactly, then the tail.
        slope = np.greater_equal(logits, 0, out=np.empty_like(logits))
        slope -= target
        slope -= np.copysign(tail, logits)
        if pos_weight is not None:
            # The sigmoid of -x is 1 - target - slope.
            slope -= (pos_weight - 1) * target * (1 - target - slope)
        slope *= scale
        grad_logits = slope
    if needs[1]:
        slope = np.negative(logits)
        if pos_weight is not None:
            # softplus(-x), of which the part that is not straight is -log(1 - tail).
            slope = slope - (pos_weight - 1) * (np.log1p(-tail) + np.minimum(logits, 0))
        grad_target = slope * scale
    return grad_logits, grad_target


def _num_averaged(shape: tuple[int, ...], size: int, reduction: str) -> int:
    return shape[0] if reduction == "batchmean" else size


def _kl_div(log_output: Array, target: Array, reduction: str, log_target: bool) -> tuple[Array, Any]:
    check_alike("kl_div", log_output, target)
    if reduction == "batchmean" and not target.ndim:
        raise ShapeError(f"kl_div got a target of {describe(target)}; for 'batchmean' it takes (N, ...)")
    if log_target:
        losses = np.asarray(target - log_output)
        losses *= np.exp(target)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.asarray(np.log(target))
        # What is impossible adds nothing, unless the output is minus infinity: then this is no number, as in PyTorch.
        logs[target == 0] = 0
        losses = np.asarray(target * logs)
        losses -= target * log_output
    count = _num_averaged(target.shape, target.size, reduction)
    output = reduced(losses, "mean" if reduction == "batchmean" else reduction, count)
    return output, (log_output, target, reduction, log_target)


def _kl_div_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    log_output, target, reduction, log_target = saved
    if reduction == "batchmean":
        scale = of_each(gradient, "mean", target.shape[0])
    else:
        scale = of_each(gradient, reduction, target.size)
    grad_output = grad_target = None
    with np.errstate(divide="ignore"):
        probabilities = np.exp(target) if log_target else target
        if needs[0]:
            grad_output = np.negative(probabilities * scale)
        if needs[1]:
            slope = np.asarray((target if log_target else np.log(target)) - log_output)
            slope += 1
            if log_target:
                slope *= probabilities
            slope *= scale
            grad_target = slope
    return grad_output, grad_target


def _cosine_embedding(a: Array, b: Array, target: Array, reduction: str, margin: float) -> tuple[Array, Any]:
    if a.shape != b.shape or a.ndim not in (1, 2) or target.shape != a.shape[:-1]:
        raise ShapeError(
            f"cosine_embedding_loss got inputs of {describe(a)} and {describe(b)} with a target of {describe(target)}; "
            "it takes two inputs (N, D) with a target (N,) of 1 and -1, or (D,) with ()"
        )
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        raise DtypeError(f"cosine_embedding_loss got inputs of {a.dtype} and {b.dtype}; it takes floating dtypes")
    square_a = np.add.reduce(np.square(a), axis=-1, keepdims=True) + _EPSILON
    square_b = np.add.reduce(np.square(b), axis=-1, keepdims=True) + _EPSILON
    size = np.sqrt(square_a * square_b)
    cosine = np.add.reduce(a * b, axis=-1, keepdims=True) / size
    labels = target[..., None]
    above = np.asarray(cosine - margin)
    losses = np.where(labels == 1, 1 - cosine, 0) + np.where(labels == -1, np.maximum(above, 0), 0)
    slope = np.where(labels == 1, -1, 0) + np.where((labels == -1) & (above >= 0), 1, 0)
    saved = (a, b, square_a, square_b, size, cosine, slope, reduction)
    return reduced(np.asarray(losses[..., 0]), reduction), saved


def _cosine_embedding_vjp(gradient: Array, saved: Any, needs: Needs) -> Gradients:
    a, b, square_a, square_b, size, cosine, slope, reduction = saved
    scale = of_each(gradient, reduction, slope.size)
    scale = (scale[..., None] if reduction == "none" else scale) * slope
    return (
        (b / size - a * (cosine / square_a)) * scale if needs[0] else None,
        (a / size - b * (cosine / square_b)) * scale if needs[1] else None,
        None,
    )


BINARY_CROSS_ENTROPY_WITH_LOGITS = Operation(
    "binary_cross_entropy_with_logits",
    _binary_cross_entropy,
    _binary_cross_entropy_vjp,
    f"logits and a target of one shape {REDUCTION}",
    reads=(0, 1),
)
KL_DIV = Operation(
    "kl_div", _kl_div, _kl_div_vjp, f"logarithms and a target of one shape {REDUCTION}, or 'batchmean'", reads=(0, 1)
)
COSINE_EMBEDDING_LOSS = Operation(
    "cosine_embedding_loss",
    _cosine_embedding,
    _cosine_embedding_vjp,
    f"two inputs (N, D), a target (N,) of 1 and -1 {REDUCTION}",
    reads=(0, 1),
)

OPERATIONS = (BINARY_CROSS_ENTROPY_WITH_LOGITS, KL_DIV, COSINE_EMBEDDING_LOSS)
