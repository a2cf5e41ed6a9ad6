"""Normalisation as functions of tensors, with PyTorch's arguments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddp_bp.engine.graph import no_grad
from ddp_bp.engine.misuse import explained
from ddp_bp.engine.ops import normalization, row_norm, shards
from ddp_bp.engine.shard_group import current_group
from ddp_bp.engine.tensor import Tensor, apply
from ddp_bp.errors import InputError, ShapeError


@explained
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises each channel of `input` (N, C, *spatial), N counting as an axis, and scales it by `weight` (C,).

    In training by the mean and variance of the batch, which then move the running ones, if there are any, in place:
    running = (1 - momentum) * running + momentum * batch, with the unbiased variance. Otherwise by the running ones.
    """
    affine = _parameters("batch_norm", weight, bias)
    if not training:
        if running_mean is None or running_var is None:
            raise InputError("batch_norm got no running_mean or running_var; it takes both unless training=True")
        return apply(normalization.BATCH_NORM_EVAL, (input, running_mean, running_var, *affine), (eps,))
    if running_mean is None or running_var is None:
        return apply(normalization.BATCH_NORM, (input, *affine), (eps, None))
    mean, variance = statistics = normalization.batch_statistics(input._array)
    output = apply(normalization.BATCH_NORM, (input, *affine), (eps, statistics))
    num_values = input.numel() // len(mean)
    with no_grad():
        running_mean.mul_(1 - momentum).add_(mean * momentum)
        running_var.mul_(1 - momentum).add_(variance * (momentum * num_values / (num_values - 1)))
    return output


@explained
def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`batch_norm` in training, by the mean and variance over all shards of the batch, however uneven they are.

    Where the batch is not cut into shards it is `batch_norm`. Each shard makes the same calls in the same order, in
    backward as well. Raises ShapeError if all shards together have fewer than two values per channel.
    """
    group = current_group()
    if group is None:
        return batch_norm(input, running_mean, running_var, weight, bias, True, momentum, eps)
    affine = _parameters("sync_batch_norm", weight, bias)
    num_channels = input.shape[1]
    num_values = int(group.total(np.array([input.numel() / num_channels]))[0])
    if num_values < 2:
        raise ShapeError(
            f"sync_batch_norm got {num_values} value(s) per channel over all shards; it takes 2 or more, since one "
            "value has no variance: use a larger batch or eval()"
        )
    axes, by_channel = (0, *range(2, input.ndim)), (num_channels, *[1] * (input.ndim - 2))
    mean = shard_sum(input.sum(axes)) / num_values
    centred = input - mean.reshape(by_channel)
    variance = shard_sum((centred * centred).sum(axes)) / num_values
    scale = (variance + eps).rsqrt()
    output = centred * (scale * affine[0] if affine else scale).reshape(by_channel)
    if len(affine) == 2:
        output = output + affine[1].reshape(by_channel)
    if running_mean is not None and running_var is not None:
        with no_grad():
            running_mean.mul_(1 - momentum).add_(mean * momentum)
            running_var.mul_(1 - momentum).add_(variance * (momentum * num_values / (num_values - 1)))
    return output


@explained
def shard_sum(input: Tensor) -> Tensor:
    """The sum of `input`, of any shape, over all shards of the batch; `input` itself where there is one shard only.

    Every shard that has samples must call it the same number of times, each time with the same shape, and the module
    that does so has `sums_over_shards = True`. It is summed in
    float64 in a fixed order, so that it has the same bits on every shard for any number of ranks.
    """
    group = current_group()
    return apply(shards.SHARD_SUM, (input,), (None if group is None else group.total,))


@explained
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Brings each part of `input` (..., *normalized_shape) to mean 0 and variance 1, times `weight` plus `bias`."""
    parameters = _parameters("layer_norm", weight, bias)
    return apply(row_norm.LAYER_NORM, (input, *parameters), (tuple(normalized_shape), eps))


@explained
def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Brings each part of `input` (..., *normalized_shape) to mean square 1, times `weight`.

    Without `eps` it is the spacing of the dtype's numbers at 1.
    """
    small = float(np.finfo(input.dtype).eps) if eps is None and input.dtype.kind == "f" else eps
    return apply(row_norm.RMS_NORM, (input, *_parameters("rms_norm", weight, None)), (tuple(normalized_shape), small))


@explained
def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Brings each group of channels of each sample of `input` (N, C, *spatial) to mean 0 and variance 1."""
    return apply(row_norm.GROUP_NORM, (input, *_parameters("group_norm", weight, bias)), (num_groups, eps))


def _parameters(name: str, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, ...]:
    if weight is None:
        if bias is not None:
            raise InputError(f"{name} got a bias without a weight; it takes a weight, both or neither")
        return ()
    return (weight,) if bias is None else (weight, bias)
