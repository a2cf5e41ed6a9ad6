"""Changing a tensor in place without leaving a wrong gradient behind.

Every change counts up the version that all views of the memory share; recorded operations that will read the memory
remember the version they saw, and backward compares. A change that itself has to be recorded gives the tensor a new
place in the graph, after the change.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from ddp_bp.engine.graph import Leaf, Node, Version, recording
from ddp_bp.engine.ops.operation import Operation, describe
from ddp_bp.engine.record import watching
from ddp_bp.engine.value import Value
from ddp_bp.errors import DtypeError, EngineError, GraphError, ShapeError

T = TypeVar("T", bound=Value)


def assign(target: T, operation: Operation, others: tuple[Value, ...], options: tuple[Any, ...] = ()) -> T:
    """Writes `operation(target, *others, *options)` over `target`'s elements; returns `target`.

    Raises GraphError if the change could not be undone by backward, ShapeError or DtypeError if the result does not
    fit into `target`.
    """
    place = f"{operation.name} in place on a tensor of {describe(target._array)}"
    is_recorded = recording.get() and (target.requires_grad or any(other.requires_grad for other in others))
    if is_recorded:
        _check_recordable(target, place)
    if not target._array.flags.writeable:
        raise GraphError(f"{place} that is read-only, such as an expanded one; use clone() first")
    # The operation sees copies of everything that the write below will change.
    arrays = [target._array.copy() if is_recorded else target._array]
    for other in others:
        shares = np.may_share_memory(other._array, target._array)
        arrays.append(other._array.copy() if shares else other._array)
    watch = watching.get()
    if watch is not None:
        operation = watch(operation, (target, *others), options)
    try:
        output, saved = operation.forward(*arrays, *options)
        if np.shape(output) != target.shape:
            raise ShapeError(f"{place} gives shape {np.shape(output)}, which does not fit")
        np.copyto(target._array, output, casting="same_kind")
    except EngineError:
        raise
    except (ValueError, IndexError) as error:
        raise ShapeError(f"{place} takes {operation.expects} ({error})") from error
    except TypeError as error:
        raise DtypeError(f"{place} takes {operation.expects} ({error})") from error
    target._version[0] += 1
    if is_recorded:
        edges = (target._node, *(other._node for other in others))
        read: list[Version] = [
            others[position - 1]._version
            for position in operation.reads
            if position and arrays[position] is others[position - 1]._array
        ]
        versions = [(version, version[0]) for version in read]
        target._node = Node(operation, edges, saved, target._array.dtype, versions)
    return target


def _check_recordable(target: Value, place: str) -> None:
    if isinstance(target._node, Leaf):
        raise GraphError(
            f"{place} that is a leaf and requires a gradient; change it under no_grad(), or compute a new value"
        )
    if target._version[1]:
        raise GraphError(
            f"{place} whose memory other tensors view: their histories would no longer hold; "
            "compute a new value instead, as in y = y + x"
        )
