"""One block of elements as the rule of an optimizer sees it, and the ways in which a rule changes what is kept.

A rule works out new values in scratch memory, and writes them with one of the methods below, one vector after another.
So whoever lets others go on after a death can have them see what a write was made of, and make it again; see
`worker.redo`. Knows no optimizer.
"""

from __future__ import annotations

import numpy as np

from ddp_bp.engine.ops.operation import Array


class Block:
    """The same range of elements of every vector.

    `gradient` may be overwritten; `scratch` and `other` hold nothing at first, and `scratch` nothing after a write.
    """

    __slots__ = ("gradient", "other", "parameters", "scratch", "state")

    def __init__(self, parameters: Array, scratch: Array, other: Array, state: dict[str, Array]) -> None:
        self.parameters, self.state = parameters, state
        self.scratch, self.other = scratch, other
        self.gradient = scratch

    def begin(self, gradient: Array) -> None:
        """A step begins, with this gradient."""
        self.gradient = gradient

    def set_(self, target: Array) -> None:
        """target = scratch"""
        np.copyto(target, self.scratch)

    def add_(self, target: Array) -> None:
        """target += scratch"""
        np.add(target, self.scratch, out=target)

    def subtract_(self, target: Array) -> None:
        """target -= scratch"""
        np.subtract(target, self.scratch, out=target)

    def set_sum_(self, target: Array) -> None:
        """target = other + scratch"""
        np.add(self.other, self.scratch, out=target)

    def set_difference_(self, target: Array) -> None:
        """target = other - scratch"""
        np.subtract(self.other, self.scratch, out=target)
