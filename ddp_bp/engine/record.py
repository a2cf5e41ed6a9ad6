"""Running an operation on tensors and recording it: the one place where arrays and the graph meet."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from operator import attrgetter
from typing import Any, NoReturn, TypeAlias

import numpy as np

from ddp_bp.engine.graph import Node, Version, recording
from ddp_bp.engine.ops.operation import Operation, describe
from ddp_bp.engine.value import Value
from ddp_bp.errors import DtypeError, EngineError, ShapeError

# Gives the operation to run instead: the same arithmetic, watched. As a node keeps its operation, the reverse pass runs
# the watched product without knowing it.
Watch: TypeAlias = Callable[[Operation, tuple[Value, ...], tuple[Any, ...]], Operation]

watching: ContextVar[Watch | None] = ContextVar("watching", default=None)

_array_of = attrgetter("_array")
_node_of = attrgetter("_node")


def record(result: Value, operation: Operation, inputs: tuple[Value, ...], options: tuple[Any, ...]) -> None:
    """Makes the new `result` the outcome of `operation`, with a place in the graph if a gradient may be asked for.

    Runs once per operation, so it calls as little as it can. Raises ShapeError or DtypeError that name the operation,
    what it got and what it takes.
    """
    watch = watching.get()
    if watch is not None:
        operation = watch(operation, inputs, options)
    try:
        output, saved = operation.forward(*map(_array_of, inputs), *options)
    except EngineError:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        refuse(operation, inputs, options, error)
    if type(output) is not np.ndarray:
        output = np.asarray(output)
    result._array = output
    if operation.is_view and np.may_share_memory(output, inputs[0]._array):
        result._version = inputs[0]._version
        result._version[1] = 1
    else:
        result._version = [0, 0]
    result._node = None
    if recording.get() and operation.vjp is not None:
        edges = tuple(map(_node_of, inputs))
        if any(edges):
            # The versions of everything the vjp will read, as they are now.
            versions: list[tuple[Version, int]] = []
            for position in range(len(inputs)) if operation.reads_all else operation.reads:
                version = inputs[position]._version
                versions.append((version, version[0]))
            if operation.reads_output:
                versions.append((result._version, result._version[0]))
            result._node = Node(operation, edges, saved, output.dtype, versions)


def _described(value: object) -> str:
    return describe(value._array) if isinstance(value, Value) else type(value).__name__


def refuse(operation: Operation, inputs: tuple[Value, ...], options: tuple[Any, ...], error: Exception) -> NoReturn:
    """Raises what NumPy objected to as an error that names the operation, what it got and what it takes."""
    got = ", ".join([*map(_described, inputs), *(f"{option!r}" for option in options)])
    if strangers := [value for value in inputs if not isinstance(value, Value)]:
        kinds = ", ".join(sorted({type(value).__name__ for value in strangers}))
        raise DtypeError(f"{operation.name} got {got}; it takes tensors: convert {kinds} with tensor()") from None
    kind = DtypeError if isinstance(error, TypeError) else ShapeError
    raise kind(f"{operation.name} got {got}; it takes {operation.expects} ({error})") from error
