"""All parameters as one vector, and all their gradients as another.

Exchange, optimizers and checkpoints work on these vectors; modules see views into them. This module knows neither
modules nor optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from ddp_bp.engine.graph import Leaf, Version, leaf_watch
from ddp_bp.engine.ops.operation import Array
from ddp_bp.engine.tensor import Parameter
from ddp_bp.errors import DtypeError, InputError, ShapeError

# Buffers whose views are kept. Training rotates through a few of them; more than this means that each is new.
_MAX_CACHED_BUFFERS = 16


class Slot(NamedTuple):
    """Where a parameter is in the vector: elements [offset, offset + size) in C order."""

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int


class FlatParameters:
    """Gives the parameters one contiguous home (P,) in the order in which they come, and their gradients another.

    `named_parameters` yields (name, parameter); bare parameters are named by their position. A parameter that comes
    twice (tied weights) has one slot, under its first name. Without `storage` (P,), parameters that already share a
    home in this order keep it, and others move to a new one; values are kept either way.

    Raises InputError if there are no parameters, DtypeError if their dtypes differ from each other or from `storage`.
    """

    def __init__(
        self, named_parameters: Iterable[tuple[str, Parameter] | Parameter], storage: Array | None = None
    ) -> None:
        named = _distinct(named_parameters)
        self.parameters: tuple[Parameter, ...] = tuple(parameter for _, parameter in named)
        self.slots = _lay_out(named)
        self.dtype: np.dtype[Any] = self.parameters[0].dtype
        self.size = self.slots[-1].offset + self.slots[-1].size
        home = self.parameters[0]._flat
        if (
            storage is None
            and isinstance(home, FlatParameters)
            and len(home.parameters) == len(self.parameters)
            and all(ours is theirs for ours, theirs in zip(self.parameters, home.parameters, strict=True))
            and all(parameter._flat is home for parameter in self.parameters)
        ):
            self.data: Array = home.data
            self.gradient: Array = home.gradient
            self._version: Version = home._version
        else:
            self.data = np.empty(self.size, self.dtype) if storage is None else storage
            self.gradient = np.zeros(self.size, self.dtype)
            self._version = [0, 0]
            self._check_vector(self.data, "storage")
            self._move()
        for parameter in self.parameters:
            parameter._flat = self
        self._views: dict[int, tuple[Array, tuple[Array, ...]]] = {}
        self._gradient_views = self._split(self.gradient)
        self._reported: set[int] = set()
        self._adopt_gradients()

    @classmethod
    def of(cls, params: FlatParameters | Iterable[tuple[str, Parameter] | Parameter]) -> FlatParameters:
        """`params` as FlatParameters; where they make up a whole vector already, they stay in it, in its order.

        So several users of the same parameters (an optimizer with groups, an average of the weights) agree on one
        vector, whatever the order in which each was given them.
        """
        if isinstance(params, FlatParameters):
            return params
        named = _distinct(params)
        home = named[0][1]._flat
        if isinstance(home, FlatParameters) and home.is_home() and len(home.parameters) == len(named):
            position = {id(parameter): place for place, parameter in enumerate(home.parameters)}
            if all(id(parameter) in position for _, parameter in named):
                named.sort(key=lambda item: position[id(item[1])])
        return cls(named)

    def move_to(self, storage: Array) -> None:
        """Moves the parameters into `storage` (P,), which then is their home; values are kept."""
        self._check_vector(storage, "storage")
        self.data = storage
        self._move()

    def bind_gradient(self, buffer: Array) -> None:
        """Sends the gradients of the next backward calls into `buffer` (P,), and marks every parameter as having none.

        `buffer` need not be cleared: what is first in each parameter's part is overwritten. Cheap to call again and
        again with a few buffers in rotation.
        """
        cached = self._views.get(id(buffer))
        # The cache keeps its buffers alive, so an id in it cannot have passed to another array.
        if cached is None:
            self._check_vector(buffer, "gradient buffer")
            if len(self._views) >= _MAX_CACHED_BUFFERS:
                self._views.clear()
            cached = (buffer, self._split(buffer))
            self._views[id(buffer)] = cached
        self.gradient, self._gradient_views = cached
        self._reported.clear()
        for parameter, view in zip(self.parameters, self._gradient_views, strict=True):
            leaf = parameter._node
            if type(leaf) is Leaf:
                leaf.grad = leaf.limit = None
                leaf.home = view

    def forget_buffers(self) -> None:
        """Keeps no buffer alive any more but the one that is bound."""
        self._views.clear()

    def finish_gradient(self) -> Array:
        """The bound gradient (P,), complete: zero where a parameter received none, and copied in where it was set."""
        for position, (parameter, view) in enumerate(zip(self.parameters, self._gradient_views, strict=True)):
            if position not in self._reported:
                _finish(parameter, view)
        return self.gradient

    @contextmanager
    def reporting(self, report: Callable[[int, int], None]) -> Iterator[None]:
        """Within the block, `report(lo, hi)` is called as soon as elements [lo, hi) of the bound gradient are final.

        It is called in the middle of a backward call, once for each parameter, in the order in which their gradients
        come to their end; not for one whose gradient depends on a path that backward turns out not to take. What has
        been reported is the caller's to change: `finish_gradient` leaves it alone.
        """
        token = leaf_watch.set(_Reporter(self, report))
        try:
            yield
        finally:
            leaf_watch.reset(token)

    def suspend(self) -> tuple[Array, list[Array | None]]:
        """Where gradients go at present, and how far they have come, for `resume` to go on from."""
        leaves = [parameter._node for parameter in self.parameters]
        return self.gradient, [leaf.grad if type(leaf) is Leaf else None for leaf in leaves]

    def resume(self, suspended: tuple[Array, list[Array | None]]) -> None:
        """Goes on with the gradients that `suspend` gave, so that passes over several batches can alternate."""
        gradient, gradients = suspended
        self.bind_gradient(gradient)
        for parameter, value in zip(self.parameters, gradients, strict=True):
            leaf = parameter._node
            if type(leaf) is Leaf:
                leaf.grad = value

    def arrays(self) -> dict[str, Array]:
        """The current values by name, as views into `data`."""
        return {slot.name: view for slot, view in zip(self.slots, self._split(self.data), strict=True)}

    @contextmanager
    def shown(self, values: Array) -> Iterator[None]:
        """Within the block the parameters have the values of another vector (P,); `data` is not touched."""
        self._check_vector(values, "vector of values")
        self._point_at(values)
        try:
            yield
        finally:
            self._point_at(self.data)

    def mark_changed(self) -> None:
        """Tells the graph that `data` was written to: values recorded before can no longer be used by backward."""
        self._version[0] += 1

    def is_home(self) -> bool:
        """Whether the parameters still are views into `data`: making another FlatParameters may have moved them."""
        return all(parameter._version is self._version for parameter in self.parameters)

    def check_home(self, user: str) -> None:
        """Raises InputError, in the name of `user`, if the parameters have moved away: `data` would be a stale copy."""
        if not self.is_home():
            raise InputError(
                f"{user}: its parameters have moved to another vector, with another optimizer or FlatParameters that "
                "was made later for some of them. Make one for all parameters, with groups if need be, and share it"
            )

    def zero_grad(self) -> None:
        """Marks every parameter as having no gradient; clears no memory."""
        for parameter in self.parameters:
            leaf = parameter._node
            if type(leaf) is Leaf:
                leaf.grad = leaf.limit = None

    def _split(self, vector: Array) -> tuple[Array, ...]:
        return tuple(vector[slot.offset : slot.offset + slot.size].reshape(slot.shape) for slot in self.slots)

    def _move(self) -> None:
        for parameter, view in zip(self.parameters, self._split(self.data), strict=True):
            np.copyto(view, parameter._array)
            parameter._version = self._version
        self._point_at(self.data)

    def _point_at(self, vector: Array) -> None:
        for parameter, view in zip(self.parameters, self._split(vector), strict=True):
            parameter._array = view
        self.mark_changed()

    def _adopt_gradients(self) -> None:
        """Moves gradients that exist already into the bound vector."""
        for parameter, view in zip(self.parameters, self._gradient_views, strict=True):
            leaf = parameter._node
            if type(leaf) is Leaf:
                leaf.home = view
                if leaf.grad is not None:
                    np.copyto(view, leaf.grad)
                    leaf.grad = view

    def _check_vector(self, vector: Array, what: str) -> None:
        if vector.dtype != self.dtype:
            raise DtypeError(f"the {what} has {vector.dtype} elements, and the parameters have {self.dtype}")
        if vector.shape != (self.size,) or not vector.flags.c_contiguous or not vector.flags.writeable:
            raise ShapeError(
                f"the {what} has shape {vector.shape}; it takes a writable, contiguous ({self.size},) vector"
            )


class _Reporter:
    """Turns leaves into ranges of the gradient."""

    def __init__(self, flat: FlatParameters, report: Callable[[int, int], None]) -> None:
        self._flat, self._report = flat, report
        leaves = [parameter._node for parameter in flat.parameters]
        self._positions = {leaf: position for position, leaf in enumerate(leaves) if type(leaf) is Leaf}

    def begin(self, leaves: Collection[Leaf]) -> None:
        reached = {self._positions.get(leaf) for leaf in leaves}
        for position in range(len(self._flat.parameters)):
            if position not in reached:
                self._finish(position)

    def complete(self, leaf: Leaf) -> None:
        position = self._positions.get(leaf)
        if position is not None:
            self._finish(position)

    def _finish(self, position: int) -> None:
        _finish(self._flat.parameters[position], self._flat._gradient_views[position])
        self._flat._reported.add(position)
        slot = self._flat.slots[position]
        self._report(slot.offset, slot.offset + slot.size)


def _finish(parameter: Parameter, view: Array) -> None:
    """Zero where the parameter received no gradient, and copied in where it was set."""
    leaf = parameter._node
    gradient = leaf.grad if type(leaf) is Leaf else None
    if gradient is None:
        view.fill(0)
    elif gradient is not view:
        np.copyto(view, gradient)


def _distinct(named_parameters: Iterable[tuple[str, Parameter] | Parameter]) -> list[tuple[str, Parameter]]:
    named: list[tuple[str, Parameter]] = []
    seen: set[int] = set()
    for position, item in enumerate(named_parameters):
        name, parameter = item if isinstance(item, tuple) else (str(position), item)
        if not isinstance(parameter, Parameter):
            raise InputError(f"parameter {name!r} is a {type(parameter).__name__} and not a Parameter")
        if id(parameter) not in seen:
            seen.add(id(parameter))
            named.append((name, parameter))
    if not named:
        raise InputError("there are no parameters: the iterable is empty, or was used up before")
    return named


def _lay_out(named: list[tuple[str, Parameter]]) -> tuple[Slot, ...]:
    first_name, first = named[0]
    slots: list[Slot] = []
    offset = 0
    for name, parameter in named:
        if parameter.dtype != first.dtype:
            raise DtypeError(
                f"parameter {name!r} is {parameter.dtype} and {first_name!r} is {first.dtype}; "
                "all parameters of a model take one dtype"
            )
        size = parameter.numel()
        slots.append(Slot(name, parameter.shape, offset, size))
        offset += size
    return tuple(slots)
