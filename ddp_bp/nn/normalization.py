"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ddp_bp.engine.graph import no_grad
from ddp_bp.engine.tensor import Parameter, Tensor
from ddp_bp.errors import InputError, ShapeError
from ddp_bp.nn import functional, init
from ddp_bp.nn.module import Buffer, Module


class _BatchNorm(Module):
    num_axes: tuple[int, ...] = ()
    expects = ""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        if num_features < 1:
            raise InputError(f"{type(self).__name__} takes one feature or more and got {num_features}")
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.weight = Parameter(np.ones(num_features, dtype)) if affine else None
        self.bias = Parameter(np.zeros(num_features, dtype)) if affine and bias else None
        self.running_mean = Buffer(np.zeros(num_features, dtype)) if track_running_stats else None
        self.running_var = Buffer(np.ones(num_features, dtype)) if track_running_stats else None
        self.num_batches_tracked = Buffer(np.zeros((), np.int64)) if track_running_stats else None

    def reset_running_stats(self) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        init.zeros_(self.running_mean)
        init.ones_(self.running_var)
        with no_grad():
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim not in self.num_axes or input.shape[1] != self.num_features:
            raise ShapeError(
                f"{type(self).__name__} got an input of shape {input.shape}; it takes {self.expects} with "
                f"C = {self.num_features}"
            )
        momentum = self.momentum
        if self.training and self.num_batches_tracked is not None:
            with no_grad():
                self.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1 / self.num_batches_tracked.item()
        return self._normalize(input, 0.0 if momentum is None else momentum)

    def _normalize(self, input: Tensor, momentum: float) -> Tensor:
        return functional.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            momentum,
            self.eps,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """(N, C) or (N, C, L): each channel brought to mean 0 and variance 1, times `weight` (C,) plus `bias` (C,).

    In training by the batch, which then moves `running_mean` and `running_var` (unbiased) by `momentum`, or, if that is
    None, makes them the mean over all batches so far. In evaluation by the running ones, or by the batch if they are
    not tracked. A batch is what one forward sees: a shard. Two values per channel are needed.
    """

    num_axes = (2, 3)
    expects = "(N, C) or (N, C, L)"


class BatchNorm2d(_BatchNorm):
    """(N, C, H, W): each channel brought to mean 0 and variance 1, times `weight` (C,) plus `bias` (C,).

    Statistics are taken over N, H and W and kept as in `BatchNorm1d`.
    """

    num_axes = (4,)
    expects = "(N, C, H, W)"


class SyncBatchNorm(_BatchNorm):
    """Batch norm over all shards of the global batch, not over the shard at hand, on (N, C), (N, C, L) or (N, C, H, W).

    So a job gives what one process with the whole batch gives, however small or uneven the shards are. Forward and
    backward each wait for all shards, in which ranks keep step. In a script of one process it is batch norm.
    """

    num_axes = (2, 3, 4)
    expects = "(N, C), (N, C, L) or (N, C, H, W)"
    sums_over_shards = True

    def _normalize(self, input: Tensor, momentum: float) -> Tensor:
        if not self.training:
            return super()._normalize(input, momentum)
        return functional.sync_batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, momentum, self.eps
        )

    @staticmethod
    def convert_sync_batchnorm(module: Module) -> Module:
        """`module` with every batch norm in it turned into one over all shards; its parameters and buffers stay."""
        for part in module.modules():
            if isinstance(part, _BatchNorm):
                # The very same object, so that whoever holds it, a list or an attribute, holds the new kind.
                part.__class__ = SyncBatchNorm
        return module


def _shape(given: int | Sequence[int]) -> tuple[int, ...]:
    shape = (given,) if isinstance(given, int) else tuple(given)
    if not shape or min(shape) < 1:
        raise InputError(f"normalized_shape is one or more sizes above 0, and got {given!r}")
    return shape


class LayerNorm(Module):
    """(..., *normalized_shape): each part brought to mean 0 and variance 1, times `weight` plus `bias`."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.normalized_shape = _shape(normalized_shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.weight = Parameter(np.ones(self.normalized_shape, dtype)) if elementwise_affine else None
        self.bias = Parameter(np.zeros(self.normalized_shape, dtype)) if elementwise_affine and bias else None

    def forward(self, input: Tensor) -> Tensor:
        return functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}"
        )


class RMSNorm(Module):
    """(..., *normalized_shape): each part brought to mean square 1, times `weight`.

    Without `eps` it is the spacing of the dtype's numbers at 1.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.normalized_shape = _shape(normalized_shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.weight = Parameter(np.ones(self.normalized_shape, dtype)) if elementwise_affine else None

    def forward(self, input: Tensor) -> Tensor:
        return functional.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(Module):
    """(N, C, *spatial): each of `num_groups` groups of channels of a sample brought to mean 0 and variance 1.

    Then each channel is multiplied by its `weight` and its `bias` added, both (C,).
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        if num_groups < 1 or num_channels < 1 or num_channels % num_groups:
            raise InputError(f"GroupNorm takes channels in equal groups and got {num_channels} in {num_groups} groups")
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.affine = affine
        self.weight = Parameter(np.ones(num_channels, dtype)) if affine else None
        self.bias = Parameter(np.zeros(num_channels, dtype)) if affine and bias else None

    def forward(self, input: Tensor) -> Tensor:
        return functional.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )
