"""The recorded graph and its reverse pass.

A recorded operation is a `Node`; a tensor that gradients are kept for is a `Leaf`. Edges lead from a node to the nodes
and leaves of its inputs. This module knows no operation by name and nothing of the class Tensor.

Every node gets a number larger than those of all its inputs, so that taking the pending node with the largest number,
again and again, visits each node once and only after all its consumers. There is no recursion, whatever the depth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from heapq import heappop, heappush
from typing import Any, Protocol, TypeAlias

import numpy as np

from ddp_bp.engine.ops.operation import Array, Operation
from ddp_bp.errors import GraphError, ShapeError

# A context variable starts afresh in each thread: ranks that run as threads do not switch off each other's recording.
recording: ContextVar[bool] = ContextVar("recording", default=True)

# Drawing from one counter is atomic, which keeps the order valid where a tensor passes from one thread to another.
_next_number = itertools.count(1).__next__

# [number of in-place changes, 1 if another recorded tensor views the same memory]; shared by all views of the memory.
Version: TypeAlias = list[int]

Edge: TypeAlias = "Node | Leaf | None"


class LeafWatch(Protocol):
    """Is told by a backward call when gradients have come to their end, while that goes on with others."""

    def begin(self, leaves: Collection[Leaf]) -> None:
        """These leaves may be reached; all others receive nothing."""

    def complete(self, leaf: Leaf) -> None:
        """Nothing more will be added to the gradient of `leaf`."""


# Who watches the backward calls of this thread, if anybody.
leaf_watch: ContextVar[LeafWatch | None] = ContextVar("leaf_watch", default=None)


@contextmanager
def no_grad() -> Iterator[None]:
    """Within the block, or the function that it decorates, this thread records nothing."""
    token = recording.set(False)
    try:
        yield
    finally:
        recording.reset(token)


def is_grad_enabled() -> bool:
    return recording.get()


class Leaf:
    """The end of the graph at a tensor that requires a gradient: where that gradient is summed up."""

    __slots__ = ("dtype", "grad", "home", "is_limited", "limit", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype
        self.grad: Array | None = None
        # The array that the next first contribution is written into; None if one is to be allocated.
        self.home: Array | None = None
        # Whether somebody asks for `limit`, and what no element of `grad` exceeds, if that came with the only
        # contribution; see `gradient_size`.
        self.is_limited = False
        self.limit: float | None = None

    def add(self, contribution: Array) -> None:
        """Sums `contribution` into the gradient. A contribution already in `home` is only taken note of."""
        if self.grad is not None:
            np.add(self.grad, contribution, out=self.grad, casting="same_kind")
            self.limit = None
        elif contribution is self.home:
            self.grad = contribution
        elif self.home is not None:
            np.copyto(self.home, contribution)
            self.grad, self.limit = self.home, None
        else:
            # A copy, because a vjp may return an array that others hold as well.
            self.grad = np.array(contribution, self.dtype)


class Node:
    """A recorded operation: what its vector-Jacobian product needs, and where the results go."""

    __slots__ = ("dtype", "edges", "operation", "saved", "sequence", "versions")

    def __init__(
        self,
        operation: Operation,
        edges: tuple[Edge, ...],
        saved: object,
        dtype: np.dtype[Any],
        versions: list[tuple[Version, int]],
    ) -> None:
        self.operation = operation
        self.edges: tuple[Edge, ...] | None = edges
        self.saved: Any = saved
        self.dtype = dtype
        self.versions = versions
        self.sequence = _next_number()

    def check(self) -> tuple[Edge, ...]:
        """The edges, if backward can still go through this node."""
        edges = self.edges
        if edges is None:
            raise GraphError(
                f"backward reached {self.operation.name}, which an earlier backward has freed; "
                "give retain_graph=True to that earlier call, or compute the value again"
            )
        for version, recorded in self.versions:
            if version[0] != recorded:
                raise GraphError(
                    f"backward through {self.operation.name} needs a value that was changed in place after "
                    f"it was recorded (change {version[0]}, expected {recorded}); change a copy instead, "
                    "or call backward before changing it"
                )
        return edges

    def free(self) -> None:
        self.edges = self.saved = None
        self.versions = []


def _homes(node: Node, edges: tuple[Edge, ...]) -> list[Array | None]:
    """Where the operation may write its gradients: the homes of leaves that have no gradient yet, each once.

    Not of one that another gradient of the same operation is added to before.
    """
    homes: list[Array | None] = []
    for position in node.operation.writes:
        home = None
        if position < len(edges):
            edge = edges[position]
            if type(edge) is Leaf and edge.grad is None and edge not in edges[:position]:
                home = edge.home
        homes.append(home)
    return homes


def run_backward(root: Edge, gradient: Array, retain_graph: bool) -> None:
    """Sends `gradient`, of the root value's shape and dtype, back through the graph into its leaves.

    Whoever is the `leaf_watch` hears of leaves that are complete; without one, nothing is counted.
    Gradients on the way are dropped as soon as they have been passed on, and so are the nodes without `retain_graph`.
    Raises GraphError at a node that is freed already or reads a value changed since.
    """
    if root is None:
        return
    if isinstance(root, Leaf):
        root.add(gradient)
        return
    # Per node: itself, its gradient so far, and whether that array is ours to add into.
    pending: dict[int, tuple[Node, Array, bool]] = {root.sequence: (root, gradient, False)}
    order = [-root.sequence]
    watch = leaf_watch.get()
    uses = _count_uses(root) if watch is not None else {}
    if watch is not None:
        watch.begin(uses.keys())
    while order:
        node, gradient, _ = pending.pop(-heappop(order))
        edges = node.check()
        operation = node.operation
        vjp = operation.vjp
        assert vjp is not None
        needs = tuple([edge is not None for edge in edges])
        if operation.writes:
            contributions = vjp(gradient, node.saved, needs, _homes(node, edges))
        else:
            contributions = vjp(gradient, node.saved, needs)
        if operation.limit is not None:
            leaf = edges[operation.writes[0]]
            if type(leaf) is Leaf and leaf.is_limited and leaf.grad is None:
                leaf.limit = operation.limit(gradient, node.saved)
        if not retain_graph:
            node.free()
        for edge, contribution in zip(edges, contributions, strict=True):
            if edge is None or contribution is None:
                continue
            if type(contribution) is not np.ndarray or contribution.dtype is not edge.dtype:
                contribution = np.asarray(contribution, edge.dtype)
            if type(edge) is Leaf:
                edge.add(contribution)
                continue
            assert isinstance(edge, Node)
            sequence = edge.sequence
            entry = pending.get(sequence)
            if entry is None:
                pending[sequence] = (edge, contribution, False)
                heappush(order, -sequence)
            elif entry[2]:
                np.add(entry[1], contribution, out=entry[1])
            else:
                pending[sequence] = (edge, np.asarray(entry[1] + contribution), True)
        if watch is not None:
            for leaf in edges:
                if type(leaf) is Leaf:
                    uses[leaf] -= 1
                    if uses[leaf] == 0:
                        watch.complete(leaf)


def _count_uses(root: Node) -> dict[Leaf, int]:
    """How many edges lead to each leaf that can be reached from `root`."""
    uses: dict[Leaf, int] = {}
    seen = {root.sequence}
    waiting = [root]
    while waiting:
        for edge in waiting.pop().edges or ():
            if type(edge) is Leaf:
                uses[edge] = uses.get(edge, 0) + 1
            elif isinstance(edge, Node) and edge.sequence not in seen:
                seen.add(edge.sequence)
                waiting.append(edge)
    return uses


def root_gradient(shape: tuple[int, ...], dtype: np.dtype[Any], gradient: object) -> Array:
    """The array that backward starts from: `gradient` after checking it, or 1 for a value of one element."""
    if gradient is None:
        if math.prod(shape) != 1:
            raise GraphError(
                f"backward of a value of shape {shape} needs a gradient of that shape; without one, "
                "backward starts from a single number, such as a loss after .sum() or .mean()"
            )
        return np.ones(shape, dtype)
    array = np.asarray(gradient)
    if array.shape != shape:
        raise ShapeError(f"backward got a gradient of shape {array.shape} for a value of shape {shape}")
    return array.astype(dtype)
