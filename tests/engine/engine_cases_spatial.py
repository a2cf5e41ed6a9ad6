"""Cases of operations on images and signals; see `engine_cases`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from engine_cases import Case, Drawn, numbers, positive_sides, seeds, shapes, sides
from hypothesis import strategies as st


def images(draw: Any, num_axes: int, num_channels: int, extents: tuple[int, ...]) -> np.ndarray:
    """(N, C, *extents), perhaps with no sample, or (C, *extents)."""
    leading = draw(st.sampled_from([(), (0,), (1,), (3,)]))
    return numbers((*leading, num_channels, *extents[:num_axes]), draw(seeds))


@st.composite
def convolved(draw: Any, num_axes: int) -> Drawn:
    groups, per_group, multiple = draw(positive_sides), draw(positive_sides), draw(positive_sides)
    size = tuple(draw(positive_sides) for _ in range(num_axes))
    dilation = tuple(draw(st.sampled_from([1, 2])) for _ in range(num_axes))
    stride = tuple(draw(positive_sides) for _ in range(num_axes))
    padding = tuple((draw(sides), draw(sides)) for _ in range(num_axes))
    # Extents that the window fits into, padded or not, with a remainder that no window reaches now and then.
    extents = tuple(d * (k - 1) + draw(st.sampled_from([1, 2, 5])) for d, k in zip(dilation, size, strict=True))
    a = images(draw, num_axes, groups * per_group, extents)
    num_out = groups * multiple
    inputs = [a, numbers((num_out, per_group, *size), draw(seeds))]
    if draw(st.booleans()):
        inputs.append(numbers((num_out,), draw(seeds)))
    return inputs, (stride, padding, dilation, groups)


@st.composite
def transposed(draw: Any) -> Drawn:
    groups, per_group, multiple = draw(positive_sides), draw(positive_sides), draw(positive_sides)
    size, stride, dilation = ((draw(positive_sides), draw(positive_sides)) for _ in range(3))
    reaches = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
    padding = tuple(draw(st.integers(0, reach // 2)) for reach in reaches)
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    a = images(draw, 2, groups * per_group, (draw(positive_sides), draw(positive_sides)))
    inputs = [a, numbers((groups * per_group, multiple, *size), draw(seeds))]
    if draw(st.booleans()):
        inputs.append(numbers((groups * multiple,), draw(seeds)))
    return inputs, (stride, padding, extra, dilation, groups)


@st.composite
def pooled(draw: Any, num_axes: int, kind: str) -> Drawn:
    size, stride = (tuple(draw(positive_sides) for _ in range(num_axes)) for _ in range(2))
    dilation = tuple(draw(st.sampled_from([1, 2])) if kind == "max" else 1 for _ in range(num_axes))
    padding = tuple(draw(st.integers(0, k // 2)) for k in size)
    extents = tuple(d * (k - 1) + draw(positive_sides) for d, k in zip(dilation, size, strict=True))
    a = images(draw, num_axes, draw(positive_sides), extents)
    ceil_mode = draw(st.booleans())
    if kind == "max":
        return [a], (size, stride, padding, dilation, ceil_mode)
    divisor = draw(st.sampled_from([None, 3])) if num_axes == 2 else None
    return [a], (size, stride, padding, ceil_mode, draw(st.booleans()), divisor)


@st.composite
def adaptively_pooled(draw: Any, num_axes: int) -> Drawn:
    extents = tuple(draw(st.integers(1, 7)) for _ in range(num_axes))
    wanted = tuple(draw(st.integers(1, 7)) for _ in range(num_axes))
    return [images(draw, num_axes, draw(positive_sides), extents)], (wanted,)


@st.composite
def bordered(draw: Any) -> Drawn:
    return [images(draw, 2, draw(positive_sides), (4, 3))], (tuple(draw(st.integers(-1, 2)) for _ in range(4)),)


@st.composite
def channel_normed(draw: Any, has_statistics: bool) -> Drawn:
    num_channels = draw(positive_sides)
    spatial = tuple(draw(positive_sides) for _ in range(draw(st.integers(0, 2))))
    num_samples = draw(sides) if has_statistics else draw(st.sampled_from([2, 3]))
    inputs = [numbers((num_samples, num_channels, *spatial), draw(seeds))]
    if has_statistics:
        inputs += [numbers((num_channels,), draw(seeds)), np.abs(numbers((num_channels,), draw(seeds))) + 0.5]
    inputs += [numbers((num_channels,), draw(seeds)) for _ in range(draw(st.integers(0, 2)))]
    return inputs, (0.1,) if has_statistics else (0.1, None)


def torch_conv(name: str) -> Callable[..., Any]:
    def conv(torch: Any, a: Any, weight: Any, *rest: Any) -> Any:
        *biases, stride, padding, dilation, groups = rest
        bias = biases[0] if biases else None
        border = [amount for pair in reversed(padding) for amount in pair]
        padded = torch.nn.functional.pad(a, border)
        return getattr(torch.nn.functional, name)(padded, weight, bias, stride, 0, dilation, groups)

    return conv


def torch_conv_transpose(torch: Any, a: Any, weight: Any, *rest: Any) -> Any:
    *biases, stride, padding, extra, dilation, groups = rest
    bias = biases[0] if biases else None
    return torch.nn.functional.conv_transpose2d(a, weight, bias, stride, padding, extra, groups, dilation)


def torch_pool(name: str) -> Callable[..., Any]:
    def pool(torch: Any, a: Any, *options: Any) -> Any:
        if name == "avg_pool1d":
            options = options[:-1]
        return getattr(torch.nn.functional, name)(a, *options)

    return pool


def torch_batch_norm(torch: Any, a: Any, *rest: Any) -> Any:
    *affine, eps, _ = rest
    return torch.nn.functional.batch_norm(a, None, None, *affine, training=True, eps=eps)


def torch_batch_norm_eval(torch: Any, a: Any, mean: Any, variance: Any, *rest: Any) -> Any:
    *affine, eps = rest
    # By hand, since torch's function gives the statistics no gradient.
    shape = (1, -1, *[1] * (a.ndim - 2))
    output = (a - mean.reshape(shape)) / torch.sqrt(variance.reshape(shape) + eps)
    output = output * affine[0].reshape(shape) if affine else output
    return output + affine[1].reshape(shape) if len(affine) > 1 else output


def doubled(values: np.ndarray) -> np.ndarray:
    """The total over two shards that have the same values."""
    return 2 * values


IMAGE, SIGNAL = np.ones((2, 4, 5, 6)), np.ones((2, 4, 6))
KERNEL, FILTER = np.ones((6, 4, 3, 3)), np.ones((6, 4, 3))
PLAIN = ((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
PLAIN_1D = ((1,), ((0, 0),), (1,), 1)


def pool_refusals(num_axes: int, *more: Any) -> list[tuple[list[Any], tuple[Any, ...]]]:
    a = IMAGE if num_axes == 2 else SIGNAL
    one, two, zero, eight = ((size,) * num_axes for size in (1, 2, 0, 8))
    return [
        ([a], (eight, one, zero, *more)),
        ([a], (two, zero, zero, *more)),
        ([a], (two, one, two, *more)),
        ([np.ones(3)], (two, one, zero, *more)),
        ([a.astype(np.int64)], (two, one, zero, *more)),
    ]


CASES: dict[str, Case] = {
    "conv1d": Case(
        convolved(1),
        torch_conv("conv1d"),
        [
            ([SIGNAL, KERNEL], PLAIN_1D),
            ([SIGNAL, np.ones((6, 3, 3))], PLAIN_1D),
            ([SIGNAL, np.ones((6, 4, 7))], PLAIN_1D),
            ([SIGNAL, FILTER.astype(np.float32)], PLAIN_1D),
        ],
    ),
    "conv2d": Case(
        convolved(2),
        torch_conv("conv2d"),
        [
            ([IMAGE, FILTER], PLAIN),
            ([IMAGE[0, 0], KERNEL], PLAIN),
            ([IMAGE, KERNEL, np.ones(4)], PLAIN),
            ([IMAGE, KERNEL, np.ones(6, np.float32)], PLAIN),
            ([IMAGE.astype(np.int64), KERNEL.astype(np.int64)], PLAIN),
            ([IMAGE, KERNEL[:, :2]], (*PLAIN[:3], 4)),
            ([IMAGE, np.ones((6, 4, 0, 3))], PLAIN),
            ([IMAGE, KERNEL], ((0, 1), *PLAIN[1:])),
            ([IMAGE, KERNEL], ((1, 1), ((-1, 0), (0, 0)), (1, 1), 1)),
            ([IMAGE, KERNEL], ((1, 1), ((0, 0), (0, 0)), (3, 1), 1)),
        ],
    ),
    "conv_transpose2d": Case(
        transposed(),
        torch_conv_transpose,
        [
            ([IMAGE, KERNEL], ((1, 1), (0, 0), (0, 0), (1, 1), 1)),
            ([IMAGE, KERNEL[:4]], ((2, 1), (0, 0), (2, 0), (1, 1), 1)),
            ([IMAGE, KERNEL[:4]], ((1, 1), (5, 0), (0, 0), (1, 1), 1)),
            ([IMAGE, KERNEL[:4], np.ones(6)], ((1, 1), (0, 0), (0, 0), (1, 1), 1)),
        ],
    ),
    "max_pool1d": Case(pooled(1, "max"), torch_pool("max_pool1d"), pool_refusals(1, (1,), False)),
    "max_pool2d": Case(pooled(2, "max"), torch_pool("max_pool2d"), pool_refusals(2, (1, 1), False)),
    "avg_pool1d": Case(pooled(1, "avg"), torch_pool("avg_pool1d"), pool_refusals(1, False, True, None)),
    "avg_pool2d": Case(
        pooled(2, "avg"),
        torch_pool("avg_pool2d"),
        [*pool_refusals(2, False, True, None), ([IMAGE], ((2, 2), (1, 1), (0, 0), False, True, 0))],
    ),
    "adaptive_avg_pool1d": Case(
        adaptively_pooled(1),
        torch_pool("adaptive_avg_pool1d"),
        [([SIGNAL], ((0,),)), ([np.ones((2, 4, 0))], ((2,),)), ([np.ones(3)], ((2,),))],
    ),
    "adaptive_avg_pool2d": Case(
        adaptively_pooled(2),
        torch_pool("adaptive_avg_pool2d"),
        [([IMAGE], ((2, 0),)), ([np.ones((2, 4, 0, 3))], ((2, 2),)), ([np.ones(3)], ((2, 2),))],
    ),
    "zero_pad2d": Case(
        bordered(),
        lambda torch, a, padding: torch.nn.functional.pad(a, padding),
        [([IMAGE], ((-4, -2, 0, 0),)), ([IMAGE], ((0, 0, -6, 4),)), ([np.ones(3)], ((1, 1, 1, 1),))],
    ),
    "batch_norm": Case(
        channel_normed(False),
        torch_batch_norm,
        [
            ([np.ones((1, 4))], (0.1, None)),
            ([np.ones(4)], (0.1, None)),
            ([IMAGE, np.ones(5), np.ones(5)], (0.1, None)),
            ([IMAGE, np.ones(4, np.float32), np.ones(4)], (0.1, None)),
        ],
    ),
    "batch_norm_eval": Case(
        channel_normed(True),
        torch_batch_norm_eval,
        [
            ([IMAGE, np.ones(3), np.ones(3)], (0.1,)),
            ([np.ones(4), np.ones(4), np.ones(4)], (0.1,)),
            ([IMAGE, np.ones(4), np.ones(4, np.int64)], (0.1,)),
        ],
    ),
    "shard_sum": Case(
        st.builds(
            lambda shape, seed, copies: ([numbers(shape, seed)], (doubled if copies else None,)),
            shapes,
            seeds,
            st.booleans(),
        ),
        lambda torch, a, total: a if total is None else 2 * a,
        [([np.ones(3, np.int64)], (None,))],
    ),
}
