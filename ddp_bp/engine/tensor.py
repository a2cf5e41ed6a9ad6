"""PyTorch's face of a value: operators and methods, each of which is one operation.

The arithmetic is in `ops`, the recording in `record`, the memory and the gradient in `value`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ddp_bp.engine import arguments, inplace
from ddp_bp.engine.axis_methods import AxisMethods
from ddp_bp.engine.graph import Version
from ddp_bp.engine.methods import ElementwiseMethods, Operand
from ddp_bp.engine.misuse import explained
from ddp_bp.engine.ops import arithmetic, functions, losses, product, reduction, shaping
from ddp_bp.engine.ops.operation import Array, Operation
from ddp_bp.engine.ops.reduction import Axes
from ddp_bp.engine.record import record
from ddp_bp.engine.value import Value
from ddp_bp.errors import ShapeError


class Tensor(ElementwiseMethods, AxisMethods):
    """An array that operations on it are recorded for, so that `backward` can give gradients.

    `data` is used as it is, without a copy; `tensor()` copies. Only floating tensors can require a gradient.
    """

    __slots__ = ()

    def _apply(self, operation: Operation, others: tuple[Value, ...] = (), options: tuple[Any, ...] = ()) -> Tensor:
        result = _new(Tensor)
        record(result, operation, (self, *others), options)
        return result

    def _beside(self, other: object) -> Tensor:
        return _operand(other, self)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[position] for position in range(len(self)))

    def detach(self) -> Tensor:
        """The same memory, without its history."""
        return _wrap(self._array, self._version)

    # ---- arithmetic

    def __add__(self, other: Operand) -> Tensor:
        return apply(arithmetic.ADD, (self, _operand(other, self)))

    def __radd__(self, other: Operand) -> Tensor:
        return apply(arithmetic.ADD, (_operand(other, self), self))

    def __sub__(self, other: Operand) -> Tensor:
        return apply(arithmetic.SUB, (self, _operand(other, self)))

    def __rsub__(self, other: Operand) -> Tensor:
        return apply(arithmetic.SUB, (_operand(other, self), self))

    def __mul__(self, other: Operand) -> Tensor:
        return apply(arithmetic.MUL, (self, _operand(other, self)))

    def __rmul__(self, other: Operand) -> Tensor:
        return apply(arithmetic.MUL, (_operand(other, self), self))

    def __truediv__(self, other: Operand) -> Tensor:
        return apply(arithmetic.DIV, (self, _operand(other, self)))

    def __rtruediv__(self, other: Operand) -> Tensor:
        return apply(arithmetic.DIV, (_operand(other, self), self))

    def __pow__(self, other: Operand) -> Tensor:
        return apply(arithmetic.POW, (self, _operand(other, self)))

    def __rpow__(self, other: Operand) -> Tensor:
        return apply(arithmetic.POW, (_operand(other, self), self))

    def __matmul__(self, other: Operand) -> Tensor:
        return apply(product.MATMUL, (self, _operand(other, self)))

    def __rmatmul__(self, other: Operand) -> Tensor:
        return apply(product.MATMUL, (_operand(other, self), self))

    def __neg__(self) -> Tensor:
        return apply(functions.NEG, (self,))

    def __abs__(self) -> Tensor:
        return apply(functions.ABS, (self,))

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return apply(arithmetic.EQ, (self, _operand(other, self)))

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return apply(arithmetic.NE, (self, _operand(other, self)))

    def __lt__(self, other: Operand) -> Tensor:
        return apply(arithmetic.LT, (self, _operand(other, self)))

    def __le__(self, other: Operand) -> Tensor:
        return apply(arithmetic.LE, (self, _operand(other, self)))

    def __gt__(self, other: Operand) -> Tensor:
        return apply(arithmetic.GT, (self, _operand(other, self)))

    def __ge__(self, other: Operand) -> Tensor:
        return apply(arithmetic.GE, (self, _operand(other, self)))

    def matmul(self, other: Operand) -> Tensor:
        return self @ other

    # ---- functions

    def abs(self) -> Tensor:
        return apply(functions.ABS, (self,))

    def exp(self) -> Tensor:
        return apply(functions.EXP, (self,))

    def log(self) -> Tensor:
        return apply(functions.LOG, (self,))

    def sqrt(self) -> Tensor:
        return apply(functions.SQRT, (self,))

    def tanh(self) -> Tensor:
        return apply(functions.TANH, (self,))

    def sigmoid(self) -> Tensor:
        return apply(functions.SIGMOID, (self,))

    def relu(self) -> Tensor:
        return apply(functions.RELU, (self,))

    def pow(self, exponent: Operand) -> Tensor:
        return self**exponent

    def softmax(self, dim: int) -> Tensor:
        return apply(losses.SOFTMAX, (self,), (dim,))

    def log_softmax(self, dim: int) -> Tensor:
        return apply(losses.LOG_SOFTMAX, (self,), (dim,))

    def clone(self) -> Tensor:
        return apply(shaping.CLONE, (self,))

    # ---- reductions

    def sum(self, dim: Axes = None, keepdim: bool = False) -> Tensor:
        return apply(reduction.SUM, (self,), (dim, keepdim))

    def mean(self, dim: Axes = None, keepdim: bool = False) -> Tensor:
        return apply(reduction.MEAN, (self,), (dim, keepdim))

    def amax(self, dim: Axes = None, keepdim: bool = False) -> Tensor:
        return apply(reduction.AMAX, (self,), (dim, keepdim))

    def amin(self, dim: Axes = None, keepdim: bool = False) -> Tensor:
        return apply(reduction.AMIN, (self,), (dim, keepdim))

    def argmax(self, dim: int | None = None, keepdim: bool = False) -> Tensor:
        return apply(reduction.ARGMAX, (self,), (dim, keepdim))

    # ---- arrangement

    def reshape(self, *shape: int | tuple[int, ...]) -> Tensor:
        return apply(shaping.RESHAPE, (self,), (arguments.sizes(shape),))

    @explained
    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """Joins the axes from `start_dim` to `end_dim`, both included, into one."""
        num_axes = max(self.ndim, 1)
        for axis in (start_dim, end_dim):
            if not -num_axes <= axis < num_axes:
                raise ShapeError(f"flatten got axis {axis} for shape {self.shape}; it takes [-{num_axes}, {num_axes})")
        first, last = start_dim % num_axes, end_dim % num_axes
        if first > last:
            raise ShapeError(f"flatten got start_dim {start_dim} after end_dim {end_dim} for shape {self.shape}")
        shape = self.shape or (1,)
        joined = math.prod(shape[first : last + 1])
        return self.reshape((*shape[:first], joined, *shape[last + 1 :]))

    def permute(self, *dims: int | tuple[int, ...]) -> Tensor:
        return apply(shaping.PERMUTE, (self,), (arguments.sizes(dims),))

    @explained
    def transpose(self, dim0: int, dim1: int) -> Tensor:
        """Swaps two axes."""
        axes = list(range(self.ndim))
        try:
            axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
        except IndexError:
            raise ShapeError(f"transpose got axes {dim0} and {dim1} for shape {self.shape}") from None
        return self.permute(tuple(axes))

    @property
    def T(self) -> Tensor:  # noqa: N802
        """The axes in reverse order."""
        return self.permute(tuple(reversed(range(self.ndim))))

    @explained
    def expand(self, *sizes: int | tuple[int, ...]) -> Tensor:
        """Broadcast to these sizes, where -1 keeps the length of an axis."""
        return apply(shaping.EXPAND, (self,), (arguments.kept_sizes(arguments.sizes(sizes), self.shape),))

    def __getitem__(self, index: object) -> Tensor:
        return apply(shaping.GETITEM, (self,), (arguments.index(index),))

    # ---- changes in place

    def __setitem__(self, index: object, value: Operand) -> None:
        inplace.assign(self, shaping.SETITEM, (_operand(value, self),), (arguments.index(index),))

    def copy_(self, source: Operand) -> Self:
        return inplace.assign(self, shaping.SETITEM, (_operand(source, self),), ((...,),))

    def fill_(self, value: float) -> Self:
        return self.copy_(value)

    def zero_(self) -> Self:
        return self.copy_(0)

    def add_(self, other: Operand) -> Self:
        return inplace.assign(self, arithmetic.ADD, (_operand(other, self),))

    def sub_(self, other: Operand) -> Self:
        return inplace.assign(self, arithmetic.SUB, (_operand(other, self),))

    def mul_(self, other: Operand) -> Self:
        return inplace.assign(self, arithmetic.MUL, (_operand(other, self),))

    def div_(self, other: Operand) -> Self:
        return inplace.assign(self, arithmetic.DIV, (_operand(other, self),))

    __iadd__ = add_
    __isub__ = sub_
    __imul__ = mul_
    __itruediv__ = div_


class Parameter(Tensor):
    """A tensor that training changes: a leaf that requires a gradient unless told otherwise.

    `data` is used as it is, without a copy, unless its byte order is not that of the machine.
    """

    __slots__ = ("_flat",)

    def __init__(self, data: Array | Tensor, requires_grad: bool = True) -> None:
        super().__init__(native(data._array if isinstance(data, Tensor) else data), requires_grad)
        # The FlatParameters that holds this parameter's memory, if any.
        self._flat: object | None = None

    def __repr__(self) -> str:
        return "Parameter containing:\n" + super().__repr__()


def tensor(data: npt.ArrayLike, requires_grad: bool = False, *, dtype: npt.DTypeLike | None = None) -> Tensor:
    """A tensor with a copy of `data`. NumPy arrays and scalars keep their dtype; Python floats become float32."""
    try:
        array = np.array(data, dtype=dtype)
    except (ValueError, TypeError) as error:
        raise ShapeError(f"tensor takes numbers in a regular arrangement: {error}") from error
    if dtype is None and array.dtype == np.float64 and not isinstance(data, np.ndarray | np.generic | Tensor):
        array = array.astype(np.float32)
    return Tensor(native(array), requires_grad)


def native(array: Array) -> Array:
    """`array`, or a copy in the byte order of the machine if it has the other one, as files may.

    Neither BLAS nor the fast loops of NumPy take the other one, and a dtype's name, by which values are saved, does not
    tell it. Anything but an array is returned as it is.
    """
    if not isinstance(array, np.ndarray) or array.dtype.isnative:
        return array
    return array.astype(array.dtype.newbyteorder("="))


def apply(operation: Operation, inputs: tuple[Tensor, ...], options: tuple[Any, ...] = ()) -> Tensor:
    """Runs `operation` on the inputs and records it. Raises ShapeError or DtypeError that name the operation."""
    result = _new(Tensor)
    record(result, operation, inputs, options)
    return result


_new = Tensor.__new__


def _wrap(array: Array, version: Version) -> Tensor:
    result = _new(Tensor)
    result._array = array
    result._node = None
    result._version = version
    return result


def _operand(value: object, beside: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return _wrap(arguments.operand(value, beside._array), [0, 0])
