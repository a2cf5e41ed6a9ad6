"""Every operation that runs, with its times, work and place in the recorded graph.

While no `Recorder` is on, `record` asks one context variable and that is all. One that is on hands `record` each
operation with a stopwatch around its two functions; the arrays pass through untouched, and the reverse pass knows
nothing of it. This module knows no operation by name, and no modules: who does calls `enter` and `leave` around them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cache
from time import perf_counter
from typing import Any

import numpy as np

from ddp_bp.engine.graph import Node
from ddp_bp.engine.ops.flops import count_flops
from ddp_bp.engine.ops.operation import Array, Gradients, Needs, Operation
from ddp_bp.engine.record import watching
from ddp_bp.engine.value import Value

Span = tuple[float, float]
"""Begin and end, in seconds of `perf_counter`."""


@dataclass(slots=True)
class Source:
    """Where an input of a call came from: the call of that number, the tensor of that name, or neither: data."""

    shape: tuple[int, ...]
    dtype: str
    call: int | None
    name: str | None


@dataclass(slots=True)
class Call:
    """One execution of an operation, and of its vector-Jacobian product if backward came by.

    Bytes are those of the arrays taken and given, saved ones included; an array that only views another counts none.
    """

    operation: str
    module: str | None
    """Path of the innermost module that it ran in; "" is the outermost one, None is outside of all."""
    inputs: tuple[Source, ...]
    shape: tuple[int, ...]
    dtype: str
    forward: Span
    forward_flops: int
    forward_bytes: int
    backward: list[Span] = field(default_factory=list)
    """One for each backward that came by: at most one, unless a graph was retained."""
    backward_flops: int = 0
    backward_bytes: int = 0
    gradients: tuple[bool, ...] = ()
    """For each input, whether backward computed its gradient; empty until backward comes by."""


@dataclass(slots=True)
class ModuleCall:
    """One call of a module: `path` as in `named_modules`, and the name of its class."""

    path: str
    kind: str
    span: Span


class Recorder:
    """Collects what runs in this thread while `recording_calls` is on. `names` gives a name to tensors, by id."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.calls: list[Call] = []
        self.module_calls: list[ModuleCall] = []
        self._names = names
        self._open_modules: list[tuple[str, str, float]] = []

    def enter(self, path: str, kind: str) -> None:
        """Operations from here on run in the module at `path`."""
        self._open_modules.append((path, kind, perf_counter()))

    def leave(self) -> None:
        """The module entered last is done."""
        path, kind, began = self._open_modules.pop()
        self.module_calls.append(ModuleCall(path, kind, (began, perf_counter())))

    def watch(self, operation: Operation, inputs: tuple[Value, ...], options: tuple[Any, ...]) -> Operation:
        """`operation` with a stopwatch in both of its functions."""
        module = self._open_modules[-1][0] if self._open_modules else None
        stopwatch = _Stopwatch(self.calls, operation, module, tuple(map(self._source, inputs)), options)
        kept = {name: getattr(operation, name) for name in _FIELDS}
        vjp = None if operation.vjp is None else stopwatch.vjp
        return _Watched(**kept, forward=stopwatch.forward, vjp=vjp, stopwatch=stopwatch)

    def _source(self, value: Value) -> Source:
        array, node = value._array, value._node
        number = None
        if isinstance(node, Node) and isinstance(node.operation, _Watched):
            stopwatch = node.operation.stopwatch
            number = stopwatch.number if stopwatch.calls is self.calls else None
        return Source(array.shape, _name(array.dtype), number, self._names.get(id(value)))


class _Stopwatch:
    """The two functions of one execution of an operation, timed into a new entry of `calls`, which has `number`."""

    __slots__ = ("calls", "gradient_flops", "module", "number", "operation", "options", "saved_bytes", "sources")

    def __init__(
        self,
        calls: list[Call],
        operation: Operation,
        module: str | None,
        sources: tuple[Source, ...],
        options: tuple[Any, ...],
    ) -> None:
        self.calls, self.operation, self.module, self.sources, self.options = calls, operation, module, sources, options
        self.number = -1
        self.gradient_flops: tuple[int, ...] = ()
        self.saved_bytes = 0

    def forward(self, *arguments: Any) -> tuple[Array, Any]:
        operation = self.operation
        began = perf_counter()
        output, saved = operation.forward(*arguments)
        span = began, perf_counter()
        shape = np.shape(output)
        shapes = tuple(source.shape for source in self.sources)
        flops, self.gradient_flops = count_flops(operation, shapes, shape, self.options)
        arrays = arguments[: len(shapes)]
        is_view = operation.is_view and np.may_share_memory(output, arrays[0])
        num_bytes = 0 if is_view else sum(array.nbytes for array in arrays) + output.nbytes
        reads = range(len(arrays)) if operation.reads_all else operation.reads
        self.saved_bytes = sum(arrays[position].nbytes for position in reads if position < len(arrays))
        if operation.reads_output:
            self.saved_bytes += output.nbytes
        self.number = len(self.calls)
        name = operation.name
        self.calls.append(Call(name, self.module, self.sources, shape, _name(output.dtype), span, flops, num_bytes))
        return output, saved

    def vjp(self, gradient: Array, saved: Any, needs: Needs, *homes: Any) -> Gradients:
        assert self.operation.vjp is not None
        began = perf_counter()
        contributions = self.operation.vjp(gradient, saved, needs, *homes)
        span = began, perf_counter()
        call = self.calls[self.number]
        call.backward.append(span)
        call.gradients = tuple([contribution is not None for contribution in contributions])
        call.backward_flops += sum(itertools.compress(self.gradient_flops, call.gradients))
        written = [part for part in contributions if part is not None and not np.may_share_memory(part, gradient)]
        if written:
            call.backward_bytes += gradient.nbytes + self.saved_bytes + sum(part.nbytes for part in written)
        return contributions


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Watched(Operation):
    """An operation for one execution, which recognises its results by it when they become inputs."""

    stopwatch: _Stopwatch


_FIELDS = tuple(field.name for field in fields(Operation) if field.name not in ("forward", "vjp"))


@cache
def _name(dtype: np.dtype[Any]) -> str:
    # NumPy takes longer to spell a name than to add two small arrays.
    return str(dtype)


@contextmanager
def recording_calls(recorder: Recorder) -> Iterator[None]:
    """Within the block, `recorder` sees every operation of this thread, and later the backward of those."""
    token = watching.set(recorder.watch)
    try:
        yield
    finally:
        watching.reset(token)
