"""PyTorch's elementwise methods beyond the operators of Tensor. Tensor says how to run an operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from ddp_bp.engine.misuse import explained
from ddp_bp.engine.ops import arithmetic, functions, special, stepwise
from ddp_bp.engine.ops.operation import Array, Operation
from ddp_bp.engine.value import Value
from ddp_bp.errors import DtypeError

if TYPE_CHECKING:
    from ddp_bp.engine.tensor import Tensor

Operand: TypeAlias = "Tensor | float | npt.NDArray[Any] | np.generic"


class Methods(Value):
    """Base of groups of methods: what they need of Tensor."""

    __slots__ = ()

    def _apply(self, operation: Operation, others: tuple[Value, ...] = (), options: tuple[Any, ...] = ()) -> Tensor:
        """The recorded result of `operation(self, *others, *options)`."""
        raise NotImplementedError

    def _beside(self, other: object) -> Tensor:
        """`other` as an operand of this tensor: numbers take its dtype, unless that would cut them."""
        raise NotImplementedError


def _limits(dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Bounds that clip nothing."""
    if dtype.kind == "f":
        return np.array(-np.inf, dtype), np.array(np.inf, dtype)
    if dtype.kind == "b":
        raise DtypeError("clip got booleans; it takes an array of numbers")
    limits = np.iinfo(dtype)
    return np.array(limits.min, dtype), np.array(limits.max, dtype)


class ElementwiseMethods(Methods):
    __slots__ = ()

    # ---- arithmetic, by name

    def add(self, other: Operand) -> Tensor:
        return self._apply(arithmetic.ADD, (self._beside(other),))

    def sub(self, other: Operand) -> Tensor:
        return self._apply(arithmetic.SUB, (self._beside(other),))

    def mul(self, other: Operand) -> Tensor:
        return self._apply(arithmetic.MUL, (self._beside(other),))

    def div(self, other: Operand) -> Tensor:
        return self._apply(arithmetic.DIV, (self._beside(other),))

    def remainder(self, other: Operand) -> Tensor:
        """What is left of a division rounded down: it has the sign of `other`."""
        return self._apply(stepwise.REMAINDER, (self._beside(other),))

    def floor_divide(self, other: Operand) -> Tensor:
        """The quotient rounded down. No gradient flows through it."""
        return self._apply(stepwise.FLOOR_DIVIDE, (self._beside(other),))

    def __mod__(self, other: Operand) -> Tensor:
        return self.remainder(other)

    def __rmod__(self, other: Operand) -> Tensor:
        return self._beside(other).remainder(self)  # type: ignore[arg-type]

    def __floordiv__(self, other: Operand) -> Tensor:
        return self.floor_divide(other)

    def __rfloordiv__(self, other: Operand) -> Tensor:
        return self._beside(other).floor_divide(self)  # type: ignore[arg-type]

    def maximum(self, other: Operand) -> Tensor:
        """The larger of each pair; equal ones share the gradient."""
        return self._apply(arithmetic.MAXIMUM, (self._beside(other),))

    def minimum(self, other: Operand) -> Tensor:
        """The smaller of each pair; equal ones share the gradient."""
        return self._apply(arithmetic.MINIMUM, (self._beside(other),))

    # ---- comparisons and logic

    def eq(self, other: Operand) -> Tensor:
        return self._apply(arithmetic.EQ, (self._beside(other),))

    def ne(self, other: Operand) -> Tensor:
        return self._apply(arithmetic.NE, (self._beside(other),))

    def lt(self, other: Operand) -> Tensor:
        return self._apply(arithmetic.LT, (self._beside(other),))

    def le(self, other: Operand) -> Tensor:
        return self._apply(arithmetic.LE, (self._beside(other),))

    def gt(self, other: Operand) -> Tensor:
        return self._apply(arithmetic.GT, (self._beside(other),))

    def ge(self, other: Operand) -> Tensor:
        return self._apply(arithmetic.GE, (self._beside(other),))

    def isnan(self) -> Tensor:
        return self._apply(stepwise.ISNAN)

    def isfinite(self) -> Tensor:
        return self._apply(stepwise.ISFINITE)

    def __and__(self, other: Operand) -> Tensor:
        return self._apply(stepwise.BITWISE_AND, (self._beside(other),))

    def __or__(self, other: Operand) -> Tensor:
        return self._apply(stepwise.BITWISE_OR, (self._beside(other),))

    def __xor__(self, other: Operand) -> Tensor:
        return self._apply(stepwise.BITWISE_XOR, (self._beside(other),))

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def __invert__(self) -> Tensor:
        return self._apply(stepwise.BITWISE_NOT)

    @explained
    def where(self, condition: Tensor, other: Operand) -> Tensor:
        """This tensor where the boolean `condition` holds, `other` elsewhere."""
        return condition._apply(arithmetic.WHERE, (self, self._beside(other)))

    @explained
    def masked_fill(self, mask: Tensor, value: Operand) -> Tensor:
        """`value` where the boolean `mask` holds, this tensor elsewhere."""
        return mask._apply(arithmetic.WHERE, (self._beside(value), self))

    # ---- clipping and rounding

    @explained
    def clamp(self, min: Operand | None = None, max: Operand | None = None) -> Tensor:
        """Every element moved to the nearest bound if it lies outside. Raises DtypeError without any bound."""
        if min is None and max is None:
            raise DtypeError("clip got neither a min nor a max; it takes one or both")
        low, high = (None, None) if min is not None and max is not None else _limits(self.dtype)
        return self._apply(
            stepwise.CLIP, (self._beside(low if min is None else min), self._beside(high if max is None else max))
        )

    def clip(self, min: Operand | None = None, max: Operand | None = None) -> Tensor:
        """The same as `clamp`."""
        return self.clamp(min, max)

    def sign(self) -> Tensor:
        return self._apply(stepwise.SIGN)

    def floor(self) -> Tensor:
        return self._apply(stepwise.FLOOR)

    def ceil(self) -> Tensor:
        return self._apply(stepwise.CEIL)

    def round(self) -> Tensor:
        """To the nearest whole number; halves go to the even one."""
        return self._apply(stepwise.ROUND)

    def trunc(self) -> Tensor:
        return self._apply(stepwise.TRUNC)

    # ---- functions

    def neg(self) -> Tensor:
        return self._apply(functions.NEG)

    def square(self) -> Tensor:
        return self._apply(special.SQUARE)

    def reciprocal(self) -> Tensor:
        return self._apply(special.RECIPROCAL)

    def rsqrt(self) -> Tensor:
        return self._apply(special.RSQRT)

    def log1p(self) -> Tensor:
        return self._apply(special.LOG1P)

    def log2(self) -> Tensor:
        return self._apply(special.LOG2)

    def expm1(self) -> Tensor:
        return self._apply(special.EXPM1)

    def sin(self) -> Tensor:
        return self._apply(special.SIN)

    def cos(self) -> Tensor:
        return self._apply(special.COS)

    # ---- dtypes

    @explained
    def to(self, dtype: npt.DTypeLike) -> Tensor:
        """This tensor if it has `dtype` already, else a copy of that dtype, recorded if that is floating."""
        wanted = np.dtype(dtype)
        if wanted.kind not in "fiub":
            raise DtypeError(f"to got {wanted}; it takes a dtype of floats, integers or booleans")
        if wanted == self.dtype:
            return cast("Tensor", self)
        # No gradient flows through integers and booleans.
        source = self if wanted.kind == "f" else self._beside(self._array)
        return source._apply(functions.CAST, (), (wanted,))

    def float(self) -> Tensor:
        """This tensor if it is float32, else a recorded copy that is."""
        return self.to(np.float32)

    def double(self) -> Tensor:
        """This tensor if it is float64, else a recorded copy that is."""
        return self.to(np.float64)

    def long(self) -> Tensor:
        """This tensor if it is int64, else a copy that is; fractions are cut off."""
        return self.to(np.int64)

    def bool(self) -> Tensor:
        """This tensor if it is boolean, else a copy in which everything but 0 is true."""
        return self.to(np.bool_)
