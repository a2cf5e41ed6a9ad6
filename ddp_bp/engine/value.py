"""An array with its place in the recorded graph: what there is to a tensor but its operations."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ddp_bp.engine.graph import Edge, Leaf, Node, Version, root_gradient, run_backward
from ddp_bp.engine.ops.operation import Array
from ddp_bp.errors import DtypeError, GraphError, ShapeError


class Value:
    """Base of Tensor. `data` is used as it is, without a copy. Only floating values can require a gradient."""

    __slots__ = ("__weakref__", "_array", "_node", "_version")
    __array_ufunc__ = None  # so that `ndarray + Tensor` asks the tensor
    _array: Array
    _node: Edge
    _version: Version

    def __init__(self, data: Array, requires_grad: bool = False) -> None:
        if not isinstance(data, np.ndarray):
            raise DtypeError(f"Tensor takes a NumPy array and got {type(data).__name__}; use tensor() to convert")
        if data.dtype.kind not in "fiub":
            raise DtypeError(f"Tensor takes floating, integer or boolean elements and got {data.dtype}")
        self._array = data
        self._node = None
        self._version = [0, 0]
        if requires_grad:
            self.requires_grad_()

    # ---- what it is

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype

    @property
    def ndim(self) -> int:
        return self._array.ndim

    @property
    def requires_grad(self) -> bool:
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    @property
    def is_leaf(self) -> bool:
        return not isinstance(self._node, Node)

    @property
    def grad(self) -> Array | None:
        """The sum of the gradients of all backward calls since it was last None. None for a value in between."""
        return self._node.grad if type(self._node) is Leaf else None

    @grad.setter
    def grad(self, value: npt.ArrayLike | None) -> None:
        leaf = self._node
        if type(leaf) is not Leaf:
            raise GraphError("a gradient can be set only on a leaf that requires one")
        array = None if value is None else np.array(value, leaf.dtype)
        if array is not None and array.shape != leaf.shape:
            raise ShapeError(f"grad of a tensor of shape {leaf.shape} was set to an array of shape {array.shape}")
        leaf.grad = array

    def numel(self) -> int:
        return self._array.size

    def numpy(self) -> Array:
        """A read-only view of the array."""
        view = self._array.view()
        view.flags.writeable = False
        return view

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def item(self) -> Any:
        if self._array.size != 1:
            raise ShapeError(f"item() takes a tensor of one element and got shape {self.shape}")
        return self._array.item()

    def tolist(self) -> Any:
        return self._array.tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __len__(self) -> int:
        if not self._array.ndim:
            raise ShapeError("len got a tensor of shape (); it takes one or more axes")
        return len(self._array)

    def __repr__(self) -> str:
        text = np.array2string(self._array, separator=", ", prefix="tensor(")
        suffix = "" if self.dtype in (np.float32, np.int64, np.bool_) else f", dtype={self.dtype}"
        if isinstance(self._node, Node):
            suffix += f", operation={self._node.operation.name}"
        elif self._node is not None:
            suffix += ", requires_grad=True"
        return f"tensor({text}{suffix})"

    __hash__ = object.__hash__

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if not self.is_leaf:
            raise GraphError("deepcopy of a recorded value; copy its detach() instead")
        copy = type(self)(self._array.copy(), requires_grad=self.requires_grad)
        if self.grad is not None:
            copy.grad = self.grad
        memo[id(self)] = copy
        return copy

    # ---- the graph

    def backward(self, gradient: npt.ArrayLike | None = None, retain_graph: bool = False) -> None:
        """Adds the gradient of this value to `grad` of every leaf it depends on.

        `gradient` has this tensor's shape and may be left out for a single element. Raises GraphError if nothing was
        recorded, if the graph was freed by an earlier call, or if a value it needs was changed in place since.
        """
        if self._node is None:
            raise GraphError(
                f"backward of a value of shape {self.shape} that depends on no tensor with requires_grad=True, "
                "or was computed under no_grad()"
            )
        run_backward(self._node, root_gradient(self.shape, self.dtype, gradient), retain_graph)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Starts or stops keeping gradients for this leaf. Raises GraphError on a value that was computed."""
        if not requires_grad:
            if isinstance(self._node, Node):
                raise GraphError("requires_grad=False on a recorded value; use detach()")
            self._node = None
        elif self._node is None:
            if self._array.dtype.kind != "f":
                raise DtypeError(f"only floating tensors can require a gradient, and this one is {self.dtype}")
            self._node = Leaf(self._array.shape, self._array.dtype)
        return self
