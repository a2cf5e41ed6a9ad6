"""What all optimizers share: a flat parameter vector, flat state beside it, and a step that can be taken in parts.

A subclass says which state it keeps and how one block of elements is updated. It must update each element from that
element's own values only, so that the result has the same bits however the vector is cut among ranks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ddp_bp.engine.flat import FlatParameters
from ddp_bp.engine.ops.operation import Array
from ddp_bp.engine.tensor import Parameter
from ddp_bp.errors import DtypeError, InputError, ShapeError

Allocate = Callable[[str, int, np.dtype[Any]], Array]

# Elements updated at once: what one block touches (parameters, gradient, state, scratch) stays in a core's cache.
BLOCK_SIZE = 32 * 1024


class Block(NamedTuple):
    """The same range of elements of every vector. `gradient` may be overwritten; `scratch` holds nothing."""

    parameters: Array
    gradient: Array
    scratch: Array
    state: tuple[Array, ...]


class Optimizer(ABC):
    """Base of the optimizers.

    `params` is `model.parameters()`, `model.named_parameters()` or a FlatParameters. `allocate(name, size, dtype)`
    returns a zeroed vector to keep state in, where it should not be memory of this process alone.
    Parameters that do not require a gradient when the optimizer is made are left alone by it.
    """

    state_names: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        params: FlatParameters | Iterable[tuple[str, Parameter] | Parameter],
        lr: float,
        allocate: Allocate | None = None,
    ) -> None:
        self.flat = params if isinstance(params, FlatParameters) else FlatParameters(params)
        self.lr = lr
        self.num_steps = 0
        self.state: dict[str, Array] = {}
        for name in self._kept_state():
            vector = (allocate or _zeros)(name, self.flat.size, self.flat.dtype)
            if vector.shape != (self.flat.size,) or vector.dtype != self.flat.dtype:
                raise ShapeError(
                    f"optimizer state {name!r} was allocated as {vector.shape} {vector.dtype}; "
                    f"it takes ({self.flat.size},) {self.flat.dtype}"
                )
            self.state[name] = vector
        self._scratch = np.empty(min(BLOCK_SIZE, self.flat.size), self.flat.dtype)
        self._trained = _trained_ranges(self.flat)

    @property
    def lr(self) -> float:
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = non_negative("lr", value)

    def step(self) -> None:
        """One step with the gradients in the parameters' `grad`, which it may overwrite; none counts as zero."""
        self.update(0, self.flat.size, self.flat.finish_gradient())
        self.advance()
        self.flat.mark_changed()

    def zero_grad(self) -> None:
        self.flat.zero_grad()

    def update(self, lo: int, hi: int, gradient: Array) -> None:
        """Takes the current step for elements [lo, hi), with their `gradient` (hi - lo,), which it may overwrite.

        The step is complete once this was called for every element, in whatever parts, and `advance` once.
        """
        if not 0 <= lo <= hi <= self.flat.size or gradient.shape != (hi - lo,):
            raise ShapeError(
                f"update of elements [{lo}, {hi}) of {self.flat.size} got a gradient of shape {gradient.shape}; "
                f"it takes ({hi - lo},)"
            )
        if gradient.dtype != self.flat.dtype:
            raise DtypeError(f"update got a gradient of {gradient.dtype} for parameters of {self.flat.dtype}")
        data = self.flat.data
        vectors = tuple(self.state.values())
        update_block = self._step_rule()
        for first, last in self._trained:
            for start in range(max(first, lo), min(last, hi), BLOCK_SIZE):
                stop = min(start + BLOCK_SIZE, last, hi)
                update_block(
                    Block(
                        data[start:stop],
                        gradient[start - lo : stop - lo],
                        self._scratch[: stop - start],
                        tuple([vector[start:stop] for vector in vectors]),
                    )
                )

    def advance(self) -> None:
        """Counts the step that `update` has taken."""
        self.num_steps += 1

    def state_dict(self) -> dict[str, Array]:
        """A copy of the state: "<parameter>.<state>" in the parameter's shape, and "num_steps" as int64 of shape ()."""
        result = {"num_steps": np.array(self.num_steps, np.int64)}
        for slot in self.flat.slots:
            for name, vector in self.state.items():
                part = vector[slot.offset : slot.offset + slot.size]
                result[f"{slot.name}.{name}"] = part.reshape(slot.shape).copy()
        return result

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave. If something does not fit: InputError lists it, nothing changes."""
        expected = {"num_steps": ()} | {
            f"{slot.name}.{name}": slot.shape for slot in self.flat.slots for name in self.state
        }
        problems = [f"missing: {name}" for name in expected if name not in state]
        problems += [f"unexpected: {name}" for name in state if name not in expected]
        problems += [
            f"{name}: expected shape {shape}, got {np.shape(state[name])}"
            for name, shape in expected.items()
            if name in state and np.shape(state[name]) != shape
        ]
        if problems:
            lines = "\n  ".join(problems)
            raise InputError(f"the state does not fit this {type(self).__name__}:\n  {lines}")
        self.num_steps = int(state["num_steps"])
        for slot in self.flat.slots:
            for name, vector in self.state.items():
                part = vector[slot.offset : slot.offset + slot.size].reshape(slot.shape)
                np.copyto(part, np.asarray(state[f"{slot.name}.{name}"]), casting="same_kind")

    def _kept_state(self) -> tuple[str, ...]:
        """The names of the state vectors, as PyTorch calls them."""
        return self.state_names

    @abstractmethod
    def _step_rule(self) -> Callable[[Block], None]:
        """The update of one block at the current step, with what depends on the step alone worked out beforehand."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(lr={self.lr}, num_parameters={self.flat.size}, num_steps={self.num_steps})"


def non_negative(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"an optimizer takes a finite {name} of at least 0 and got {value}")
    return value


def in_unit_interval(name: str, value: float) -> float:
    if not 0.0 <= value < 1.0:
        raise InputError(f"an optimizer takes a {name} in [0, 1) and got {value}")
    return value


def _zeros(name: str, size: int, dtype: np.dtype[Any]) -> Array:  # noqa: ARG001
    # The pages of np.zeros are mapped when they are first written to, so that a rank pays for its own slice only.
    return np.zeros(size, dtype)


def _trained_ranges(flat: FlatParameters) -> tuple[tuple[int, int], ...]:
    """The ranges of elements that require a gradient, adjacent ones joined."""
    ranges: list[tuple[int, int]] = []
    for slot, parameter in zip(flat.slots, flat.parameters, strict=True):
        if not parameter.requires_grad or not slot.size:
            continue
        if ranges and ranges[-1][1] == slot.offset:
            ranges[-1] = (ranges[-1][0], slot.offset + slot.size)
        else:
            ranges.append((slot.offset, slot.offset + slot.size))
    return tuple(ranges)
