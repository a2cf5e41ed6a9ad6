"""For every layer: arguments and inputs to try it with. Inputs are shapes, or functions of a generator and a dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

Input = tuple[int, ...] | Callable[[np.random.Generator], np.ndarray]


class Trial(NamedTuple):
    arguments: tuple[Any, ...]
    inputs: list[Input]
    options: dict[str, Any] = {}  # noqa: RUF012


small = st.sampled_from([1, 2, 3])
samples = st.sampled_from([0, 1, 3])


@st.composite
def elementwise(draw: Any, *arguments: Any) -> Trial:
    return Trial(arguments, [tuple(draw(st.lists(samples, min_size=1, max_size=3)))])


@st.composite
def along(draw: Any) -> Trial:
    shape = tuple(draw(st.lists(small, min_size=1, max_size=3)))
    return Trial((draw(st.integers(-len(shape), len(shape) - 1)),), [shape])


@st.composite
def linear(draw: Any) -> Trial:
    return Trial((draw(small), draw(small), draw(st.booleans())), [(*draw(st.lists(samples, max_size=2)), 0)])


@st.composite
def convolution(draw: Any, num_axes: int, transposed: bool = False) -> Trial:
    groups, per_group, multiple = draw(small), draw(small), draw(small)
    size = tuple(draw(small) for _ in range(num_axes))
    stride, dilation = draw(small), draw(st.sampled_from([1, 2]))
    # PyTorch warns of even windows with padding="same"; what they give is the operations' business.
    named = st.sampled_from(["same", "valid"] if stride == 1 and all(k % 2 for k in size) else ["valid"])
    padding = draw(st.integers(0, 1) if transposed else st.one_of(st.integers(0, 2), named))
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    if transposed:
        options["output_padding"] = draw(st.integers(0, max(stride, dilation) - 1))
    extents = tuple(dilation * (k - 1) + draw(small) for k in size)
    if transposed:
        extents = tuple(extent + 2 for extent in extents)
    a = (draw(samples), groups * per_group, *extents)
    return Trial((groups * per_group, groups * multiple, size), [a], options)


@st.composite
def pooling(draw: Any, num_axes: int, *names: str) -> Trial:
    size, options = draw(small), {}
    for name in names:
        if draw(st.booleans()):
            drawn = {
                "stride": small,
                "padding": st.integers(0, size // 2),
                "dilation": small,
                "divisor_override": small,
            }
            options[name] = draw(drawn.get(name, st.booleans()))
    extents = tuple(options.get("dilation", 1) * (size - 1) + draw(small) for _ in range(num_axes))
    return Trial((size,), [(draw(samples), draw(small), *extents)], options)


@st.composite
def adaptive(draw: Any, num_axes: int) -> Trial:
    wanted = draw(small) if draw(st.booleans()) else tuple(draw(small) for _ in range(num_axes))
    return Trial((wanted,), [(draw(samples), draw(small), *(draw(st.integers(1, 5)) for _ in range(num_axes)))])


@st.composite
def batch_norm(draw: Any, fewest: int, most: int) -> Trial:
    num_features = draw(small)
    spatial = tuple(draw(small) for _ in range(draw(st.integers(fewest, most))))
    options = {
        "eps": 0.1,
        "momentum": draw(st.sampled_from([0.1, 0.5, None])),
        "affine": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "track_running_stats": draw(st.booleans()),
    }
    return Trial((num_features,), [(draw(st.sampled_from([2, 3])), num_features, *spatial)], options)


@st.composite
def last_axes_norm(draw: Any, *names: str) -> Trial:
    shape = tuple(draw(st.lists(small, min_size=1, max_size=2)))
    options = {"eps": 0.1, **{name: draw(st.booleans()) for name in names}}
    return Trial((shape,), [(*draw(st.lists(samples, max_size=2)), *shape)], options)


@st.composite
def group_norm(draw: Any) -> Trial:
    groups, per_group = draw(small), draw(small)
    spatial = tuple(draw(st.lists(st.sampled_from([2, 3]), min_size=1, max_size=2)))
    options = {"eps": 0.1, "affine": draw(st.booleans()), "bias": draw(st.booleans())}
    return Trial((groups, groups * per_group), [(draw(samples), groups * per_group, *spatial)], options)


@st.composite
def bilinear(draw: Any) -> Trial:
    sizes, leading = (draw(small), draw(small), draw(small)), draw(st.lists(samples, min_size=1, max_size=2))
    return Trial(sizes, [(*leading, sizes[0]), (*leading, sizes[1])], {"bias": draw(st.booleans())})


@st.composite
def embedding(draw: Any) -> Trial:
    num_rows, shape = draw(small), tuple(draw(st.lists(samples, max_size=2)))
    return Trial((num_rows, draw(small)), [lambda rng: rng.integers(0, num_rows, shape)])


@st.composite
def positions(draw: Any) -> Trial:
    length, size = draw(small), draw(small)
    return Trial((3, size), [(*draw(st.lists(samples, max_size=2)), length, size)])


@st.composite
def attention(draw: Any) -> Trial:
    num_heads, size = draw(small), draw(small)
    embed_dim = num_heads * size
    kdim, vdim = draw(st.sampled_from([(None, None), (2, 5)]))
    batch_first, is_batched = draw(st.booleans()), draw(st.booleans())
    num_samples, num_queries, num_keys = draw(small), draw(small), draw(small)

    def shape(length: int, features: int | None) -> tuple[int, ...]:
        width = embed_dim if features is None else features
        if not is_batched:
            return (length, width)
        return (num_samples, length, width) if batch_first else (length, num_samples, width)

    options = {"bias": draw(st.booleans()), "kdim": kdim, "vdim": vdim, "batch_first": batch_first}
    inputs: list[Input] = [shape(num_queries, None), shape(num_keys, kdim), shape(num_keys, vdim)]
    return Trial((embed_dim, num_heads), inputs, options)


@st.composite
def recurrence(draw: Any, **more: Any) -> Trial:
    num_in = draw(small)
    options = {name: draw(strategy) for name, strategy in more.items()}
    options |= {name: draw(st.booleans()) for name in ("bias", "batch_first", "bidirectional")}
    options["num_layers"] = draw(st.sampled_from([1, 2]))
    shape = (draw(small), draw(small), num_in) if draw(st.booleans()) else (draw(small), num_in)
    return Trial((num_in, draw(small)), [shape], options)


def fits(trial: Trial) -> Trial:
    """A linear layer's input with its last axis set to the layer's width."""
    (shape,) = trial.inputs
    assert isinstance(shape, tuple)
    return trial._replace(inputs=[(*shape[:-1], trial.arguments[0])])


def unsigned_border(pads: tuple[int, ...]) -> Trial:
    return Trial((pads,), [(2, 1, 3, 3)])


# Layers that PyTorch has as well.
LAYERS: dict[str, st.SearchStrategy[Trial]] = {
    "Linear": linear().map(fits),
    "Bilinear": bilinear(),
    "Identity": elementwise(),
    "ReLU": elementwise(),
    "Tanh": elementwise(),
    "Sigmoid": elementwise(),
    "LeakyReLU": elementwise(0.3),
    "ELU": elementwise(0.7),
    "SiLU": elementwise(),
    "Softplus": elementwise(2.0, 1.5),
    "GELU": st.sampled_from(["none", "tanh"]).flatmap(elementwise),
    "Softmax": along(),
    "LogSoftmax": along(),
    "Flatten": st.just(Trial((), [(2, 3, 2)])),
    "Unflatten": st.sampled_from([(1, (2, 3)), (-1, (3, -1)), (1, (6,))]).map(lambda given: Trial(given, [(2, 6)])),
    "ZeroPad2d": st.tuples(*[st.integers(-1, 2)] * 4).map(unsigned_border),
    "Conv1d": convolution(1),
    "Conv2d": convolution(2),
    "ConvTranspose2d": convolution(2, transposed=True),
    "MaxPool1d": pooling(1, "stride", "padding", "dilation", "ceil_mode"),
    "MaxPool2d": pooling(2, "stride", "padding", "dilation", "ceil_mode"),
    "AvgPool1d": pooling(1, "stride", "padding", "ceil_mode", "count_include_pad"),
    "AvgPool2d": pooling(2, "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "AdaptiveAvgPool1d": adaptive(1),
    "AdaptiveAvgPool2d": adaptive(2),
    "BatchNorm1d": batch_norm(0, 1),
    "BatchNorm2d": batch_norm(2, 2),
    "LayerNorm": last_axes_norm("elementwise_affine", "bias"),
    "RMSNorm": last_axes_norm("elementwise_affine"),
    "GroupNorm": group_norm(),
    "Embedding": embedding(),
    "MultiheadAttention": attention(),
    "RNN": recurrence(nonlinearity=st.sampled_from(["tanh", "relu"])),
    "GRU": recurrence(),
    "LSTM": recurrence(),
}
# Layers of our own.
OURS: dict[str, st.SearchStrategy[Trial]] = {
    "SyncBatchNorm": batch_norm(0, 2),
    "SinusoidalPositionalEncoding": positions(),
    "LearnedPositionalEncoding": positions(),
}
# Modules made of others, and random ones: each has tests of its own.
CONTAINERS = {"ModuleDict", "ModuleList", "Residual", "Sequential", "Dropout", "Module"}
