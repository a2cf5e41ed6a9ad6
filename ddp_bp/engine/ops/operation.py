"""What an operation is: a function of arrays and its vector-Jacobian product, side by side.

Operations see NumPy arrays only; they know neither tensors nor the graph.

A `forward(*arrays, *options)` returns `(output, saved)`. `saved` is whatever the product needs later; it may hold the
input arrays and the output array themselves, and then the operation declares so in `reads` and `reads_output`, because
such a value must not change before backward.

A `vjp(gradient, saved, needs)` gets the gradient of a scalar with respect to the output, of the output's shape, and
returns one gradient per input, of that input's shape, or None where `needs` is False: it must not compute those. It
must not change `gradient` or `saved`, and may return either of them, or a view. With `writes`, a fourth argument holds
one entry per position in `writes`: an array to write that input's gradient into, or None to allocate one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Needs: TypeAlias = tuple[bool, ...]
Gradients: TypeAlias = tuple[Array | None, ...]
Flops: TypeAlias = tuple[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One entry of the table of operations. `expects` completes the sentence "<name> takes ..." in error messages."""

    name: str
    forward: Callable[..., tuple[Array, Any]]
    vjp: Callable[..., Gradients] | None
    """None if no gradient flows, as through a comparison."""
    expects: str
    reads: tuple[int, ...] = ()
    """Positions of the inputs whose arrays are in `saved`."""
    reads_all: bool = False
    """Whether the arrays of all inputs are in `saved`, however many there are."""
    reads_output: bool = False
    """Whether the output's array is in `saved`."""
    writes: tuple[int, ...] = ()
    """Positions of the inputs whose gradients the vjp can write into an array given to it."""
    limit: Callable[[Array, Any], float | None] | None = None
    """Of the first gradient that the vjp writes: `limit(gradient, saved)` is what none of its elements exceeds, found
    by reading less than that gradient, and not finite if that may be too large; None where it is not to be had."""
    is_view: bool = False
    """Whether the output may share memory with the first input."""
    flops: Callable[..., Flops] | None = None
    """Counts floating-point operations; see `flops.py`, which also says what None means."""


def unbroadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sums `gradient` over the axes that broadcasting an array of `shape` has added or stretched."""
    if gradient.shape == shape:
        return gradient
    num_added = gradient.ndim - len(shape)
    axes = tuple(range(num_added)) + tuple(
        num_added + axis for axis, size in enumerate(shape) if size == 1 and gradient.shape[num_added + axis] != 1
    )
    return np.add.reduce(gradient, axis=axes, keepdims=True).reshape(shape)


def floating(array: Array) -> Array:
    """`array`, or a float32 copy of it if it holds integers or booleans, as PyTorch promotes them in functions."""
    return array if array.dtype.kind == "f" else array.astype(np.float32)


def describe(array: Array) -> str:
    return f"{array.shape} {array.dtype}"
