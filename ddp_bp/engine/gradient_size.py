"""How large a gradient is, for whoever has to know after every backward call that all of it is finite.

To read a large gradient only for that takes as long as to fetch it from memory. But where it is a product of two small
matrices, their norms say that no element is too large (`Operation.limit`), and it need not be read. Which parameters
that is done for depends on shapes alone. Knows nothing of what it is needed for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ddp_bp.engine.flat import FlatParameters, Slot
from ddp_bp.engine.graph import Leaf

# From so many bytes on it pays to ask for a limit.
_LARGE_BYTES = 256 * 1024
# Limits are taken in single precision as well: beyond this they may be wrong, or the product may overflow.
_LARGEST_LIMIT = 1e30


class _Run(NamedTuple):
    """Elements [lo, hi) that are read together; `position`: of the large parameter whose they are, if it is one."""

    lo: int
    hi: int
    position: int | None


class GradientSize:
    """Of the gradients that backward calls leave in the vector that is bound to `parameters`."""

    def __init__(self, parameters: FlatParameters, *, takes_limits: bool = True) -> None:
        """`takes_limits`: whether backward calls may give limits; not if gradients are changed before `squared`."""
        self._parameters, self._takes_limits = parameters, takes_limits
        self._runs = _runs(parameters.slots, _LARGE_BYTES // parameters.dtype.itemsize)

    def begin(self) -> None:
        """To be called before each backward call."""
        for run in self._runs:
            # A parameter that is frozen and thawed has another leaf.
            if run.position is not None and type(leaf := self._leaf(run.position)) is Leaf:
                leaf.is_limited = self._takes_limits

    def squared(self) -> float:
        """The sum of squares of the bound gradient (P,), once it is finished, with squared limits in place of some.

        If it is finite, so is every element. The converse need not be true.
        """
        gradient, total = self._parameters.gradient, 0.0
        for lo, hi, position in self._runs:
            limit = None if position is None else self._limit(position)
            if limit is not None:
                total += limit * limit
            else:
                part = gradient[lo:hi]
                total += float(part.dot(part))
        return total

    def _limit(self, position: int) -> float | None:
        leaf = self._leaf(position)
        if type(leaf) is not Leaf or leaf.grad is None or leaf.grad is not leaf.home or leaf.limit is None:
            return None
        return leaf.limit if leaf.limit < _LARGEST_LIMIT else None

    def _leaf(self, position: int) -> object:
        return self._parameters.parameters[position]._node


def _runs(slots: Sequence[Slot], large_size: int) -> list[_Run]:
    runs: list[_Run] = []
    for position, slot in enumerate(slots):
        end = slot.offset + slot.size
        if slot.size >= large_size:
            runs.append(_Run(slot.offset, end, position))
        elif runs and runs[-1].position is None:
            runs[-1] = runs[-1]._replace(hi=end)
        else:
            runs.append(_Run(slot.offset, end, None))
    return runs
