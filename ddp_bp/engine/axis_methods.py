"""PyTorch's methods that reduce, rearrange and pick along axes, beyond the first ones of Tensor."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np

from ddp_bp.engine import arguments
from ddp_bp.engine.methods import Methods
from ddp_bp.engine.misuse import explained
from ddp_bp.engine.ops import indexing, reduction, shaping, statistics
from ddp_bp.engine.ops.reduction import Axes
from ddp_bp.errors import ShapeError

if TYPE_CHECKING:
    from ddp_bp.engine.tensor import Tensor


class ValuesAndIndices(NamedTuple):
    """Extreme values along an axis, and where they stand on it."""

    values: Tensor
    indices: Tensor


class AxisMethods(Methods):
    __slots__ = ()

    def _axis(self, name: str, dim: int, num_axes: int | None = None) -> int:
        """`dim` counted from the front. Raises ShapeError if it is out of range or no integer."""
        num_axes = max(self.ndim, 1) if num_axes is None else num_axes
        if not isinstance(dim, int | np.integer) or not -num_axes <= dim < num_axes:
            raise ShapeError(f"{name} got axis {dim!r} for shape {self.shape}; it takes [-{num_axes}, {num_axes})")
        return dim % num_axes

    # ---- reductions

    @overload
    def max(self, dim: None = None, keepdim: Literal[False] = False) -> Tensor: ...
    @overload
    def max(self, dim: int, keepdim: bool = False) -> ValuesAndIndices: ...
    def max(self, dim: int | None = None, keepdim: bool = False) -> Tensor | ValuesAndIndices:
        """The largest element; with `dim`, the (values, indices) of the first largest along that axis."""
        if dim is None:
            return self._apply(reduction.AMAX, (), (None, False))
        return self._extremes(self._apply(reduction.ARGMAX, (), (dim, True)), dim, keepdim)

    @overload
    def min(self, dim: None = None, keepdim: Literal[False] = False) -> Tensor: ...
    @overload
    def min(self, dim: int, keepdim: bool = False) -> ValuesAndIndices: ...
    def min(self, dim: int | None = None, keepdim: bool = False) -> Tensor | ValuesAndIndices:
        """The smallest element; with `dim`, the (values, indices) of the first smallest along that axis."""
        if dim is None:
            return self._apply(reduction.AMIN, (), (None, False))
        return self._extremes(self._apply(reduction.ARGMIN, (), (dim, True)), dim, keepdim)

    def _extremes(self, indices: Tensor, dim: int, keepdim: bool) -> ValuesAndIndices:
        values = self._apply(indexing.GATHER, (indices,), (dim,))
        return (
            ValuesAndIndices(values, indices)
            if keepdim
            else ValuesAndIndices(values.squeeze(dim), indices.squeeze(dim))
        )

    def argmin(self, dim: int | None = None, keepdim: bool = False) -> Tensor:
        return self._apply(reduction.ARGMIN, (), (dim, keepdim))

    def any(self, dim: Axes = None, keepdim: bool = False) -> Tensor:
        return self._apply(reduction.ANY, (), (dim, keepdim))

    def all(self, dim: Axes = None, keepdim: bool = False) -> Tensor:
        return self._apply(reduction.ALL, (), (dim, keepdim))

    def prod(self, dim: Axes = None, keepdim: bool = False) -> Tensor:
        return self._apply(statistics.PROD, (), (dim, keepdim))

    def var(
        self, dim: Axes = None, unbiased: bool = True, keepdim: bool = False, *, correction: float | None = None
    ) -> Tensor:
        """The mean squared distance from the mean, over n - 1 or, unless `unbiased`, over n; or over n - correction."""
        return self._apply(statistics.VAR, (), _of_variance(dim, unbiased, keepdim, correction))

    def std(
        self, dim: Axes = None, unbiased: bool = True, keepdim: bool = False, *, correction: float | None = None
    ) -> Tensor:
        """The square root of `var`."""
        return self._apply(statistics.STD, (), _of_variance(dim, unbiased, keepdim, correction))

    def logsumexp(self, dim: Axes, keepdim: bool = False) -> Tensor:
        """The logarithm of the sum of exponentials, without overflow."""
        return self._apply(statistics.LOGSUMEXP, (), (dim, keepdim))

    def cumsum(self, dim: int) -> Tensor:
        """Along `dim`, the sum of each element and those before it."""
        return self._apply(statistics.CUMSUM, (), (dim,))

    # ---- arrangement

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the length of one axis."""
        return self.shape if dim is None else self.shape[self._axis("size", dim)]

    def dim(self) -> int:
        return self.ndim

    def view(self, *shape: int | tuple[int, ...]) -> Tensor:
        """The same as `reshape`; where the elements cannot stay in place, this copies instead of raising an error."""
        return self._apply(shaping.RESHAPE, (), (arguments.sizes(shape),))

    def squeeze(self, dim: int | tuple[int, ...] | None = None) -> Tensor:
        """Without the axes of length 1, or without those among `dim`."""
        dims = tuple(range(self.ndim)) if dim is None else dim if isinstance(dim, tuple) else (dim,)
        dropped = {self._axis("squeeze", axis) for axis in dims}
        shape = tuple(side for axis, side in enumerate(self.shape) if side != 1 or axis not in dropped)
        return self._apply(shaping.RESHAPE, (), (shape,))

    def unsqueeze(self, dim: int) -> Tensor:
        """With a new axis of length 1 at `dim`."""
        axis = self._axis("unsqueeze", dim, self.ndim + 1)
        return self._apply(shaping.RESHAPE, (), ((*self.shape[:axis], 1, *self.shape[axis:]),))

    @explained
    def unflatten(self, dim: int, sizes: Sequence[int]) -> Tensor:
        """With the axis `dim` cut into axes of these lengths, one of which may be -1."""
        axis = self._axis("unflatten", dim)
        return self._apply(shaping.RESHAPE, (), ((*self.shape[:axis], *sizes, *self.shape[axis + 1 :]),))

    def t(self) -> Tensor:
        """The transpose of a matrix, or a vector as it is."""
        if self.ndim > 2:
            raise ShapeError(f"t got shape {self.shape}; it takes a matrix or a vector: use mT or transpose")
        return self._apply(shaping.PERMUTE, (), (tuple(reversed(range(self.ndim))),))

    @property
    def mT(self) -> Tensor:  # noqa: N802
        """With the last two axes swapped."""
        if self.ndim < 2:
            raise ShapeError(f"mT got shape {self.shape}; it takes matrices, (..., n, m)")
        return self._apply(shaping.PERMUTE, (), ((*range(self.ndim - 2), self.ndim - 1, self.ndim - 2),))

    def movedim(self, source: int, destination: int) -> Tensor:
        """With the axis `source` moved to `destination`, the others in their order."""
        axis, place = self._axis("movedim", source), self._axis("movedim", destination)
        order = [other for other in range(self.ndim) if other != axis]
        order.insert(place, axis)
        return self._apply(shaping.PERMUTE, (), (tuple(order),))

    def flip(self, *dims: int | tuple[int, ...]) -> Tensor:
        """With the elements along these axes in reverse order."""
        flipped = {self._axis("flip", axis) for axis in arguments.sizes(dims)}
        index = tuple(slice(None, None, -1 if axis in flipped else None) for axis in range(self.ndim))
        return self._apply(shaping.GETITEM, (), ((*index, ...),))

    @explained
    def broadcast_to(self, shape: tuple[int, ...]) -> Tensor:
        return self._apply(shaping.EXPAND, (), (tuple(shape),))

    # ---- picking

    @explained
    def narrow(self, dim: int, start: int, length: int) -> Tensor:
        """`length` elements from `start` on along `dim`."""
        axis = self._axis("narrow", dim)
        side = self.shape[axis] if self.ndim else 0
        start = index(start) + (side if start < 0 else 0)
        if not 0 <= start <= start + length <= side:
            raise ShapeError(f"narrow got elements {start} to {start + length} of axis {dim} of shape {self.shape}")
        return self._apply(shaping.GETITEM, (), ((*(slice(None),) * axis, slice(start, start + length), ...),))

    @explained
    def split(self, split_size: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
        """Parts along `dim`: of one size (the last may be smaller), or of the sizes given, which must add up."""
        axis = self._axis("split", dim)
        side = self.shape[axis] if self.ndim else 0
        if isinstance(split_size, int):
            if split_size < (1 if side else 0) or not self.ndim:
                raise ShapeError(f"split got size {split_size} for shape {self.shape}; it takes a size from 1 on")
            sizes = [min(split_size, side - start) for start in range(0, side, split_size or 1)] or [0]
        else:
            sizes = list(split_size)
            if sum(sizes) != side or min(sizes, default=0) < 0:
                raise ShapeError(f"split got sizes {sizes} for axis {dim} of shape {self.shape}; they must add up")
        starts = np.cumsum([0, *sizes]).tolist()
        return tuple(self.narrow(axis, start, size) for start, size in zip(starts, sizes, strict=False))

    @explained
    def chunk(self, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
        """Up to `chunks` parts along `dim`, of one size but for the last."""
        if chunks < 1:
            raise ShapeError(f"chunk got {chunks} chunks; it takes 1 or more")
        axis = self._axis("chunk", dim)
        side = self.shape[axis] if self.ndim else 0
        return self.split(-(-side // chunks), dim) if side else self.split([0] * chunks, dim)

    def unbind(self, dim: int = 0) -> tuple[Tensor, ...]:
        """The slices along `dim`, which is dropped."""
        axis = self._axis("unbind", dim)
        if not self.ndim:
            raise ShapeError("unbind got shape (); it takes one or more axes")
        before = (slice(None),) * axis
        return tuple(self._apply(shaping.GETITEM, (), ((*before, k, ...),)) for k in range(self.shape[axis]))

    def select(self, dim: int, index: int) -> Tensor:
        """One slice along `dim`, which is dropped."""
        axis = self._axis("select", dim)
        return self._apply(shaping.GETITEM, (), ((*(slice(None),) * axis, index, ...),))

    @explained
    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The slices along `dim` at the places in `index`, a vector of integers; repeats are fine."""
        axis = self._axis("index_select", dim)
        if index.ndim != 1 or index.dtype.kind not in "iu":
            raise ShapeError(f"index_select got an index {index.shape} {index.dtype}; it takes a vector of integers")
        return self._apply(shaping.GETITEM, (), (arguments.index((*(slice(None),) * axis, index)),))

    def gather(self, dim: int, index: Tensor) -> Tensor:
        """For each place in `index`, the element at that place but, along `dim`, at the number that stands there."""
        return self._apply(indexing.GATHER, (index,), (dim,))


def _of_variance(dim: Axes, unbiased: bool, keepdim: bool, correction: float | None) -> tuple[Axes, bool, float]:
    # x.var(False), as PyTorch has it, is about bias and not about an axis.
    if isinstance(dim, bool):
        return None, keepdim, float(dim)
    return dim, keepdim, float(unbiased) if correction is None else correction
