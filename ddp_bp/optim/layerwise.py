"""Optimizers whose step is scaled by norms of whole parameters, which a slice alone does not know.

A step has two phases. `norm_partials` goes over a slice, and gives its sums of squares per piece: a piece is what lies
in one parameter and in one row, so it is never cut. Ranks put the pieces of their slices side by side; `norms` adds
them up, always in the same order; `update` goes over the slice again. No rank and no communication is known here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ddp_bp.engine.ops.operation import Array
from ddp_bp.errors import ShapeError
from ddp_bp.optim.block import Block
from ddp_bp.optim.optimizer import Optimizer, Rule
from ddp_bp.optim.rows import ROW_ELEMENTS, check_row, square_sums
from ddp_bp.optim.settings import Params
from ddp_bp.optim.state import Allocate


class LayerwiseOptimizer(Optimizer):
    """Base of the optimizers in two phases. A rank that updates slices does, for each slice [lo, hi) that it owns,

        first, last = optimizer.partial_bounds(lo, hi)
        partials[first:last] = optimizer.norm_partials(lo, hi, gradient)    # partials: (num_partials, 2) float64

    then gathers `partials` from all ranks, and does for each of its slices, with the same `gradient`,

        optimizer.update(lo, hi, gradient, optimizer.norms(partials))

    and `advance` once. Slices begin at multiples of 1024 elements, and end at one or with the vector.
    """

    def __init__(self, params: Params, defaults: Mapping[str, Any], allocate: Allocate | None = None) -> None:
        super().__init__(params, defaults, allocate)
        # Parameters that have elements: their numbers, where they begin, and which piece is their first.
        self._filled = np.array([number for number, slot in enumerate(self.flat.slots) if slot.size], np.intp)
        offsets = np.array([self.flat.slots[number].offset for number in self._filled], np.intp)
        self._starts = np.union1d(offsets, np.arange(0, self.flat.size, ROW_ELEMENTS))
        self._first_pieces = np.searchsorted(self._starts, offsets)
        self._arrange()

    def _arrange(self) -> None:
        self._segments = tuple(self._slot_segments())
        number_at = {self.flat.slots[number].offset: int(number) for number in self._filled}
        self._numbers = tuple(number_at[segment.first] for segment in self._segments)

    @property
    def num_partials(self) -> int:
        """The number of pieces of the whole vector."""
        return int(self._starts.size)

    def partial_bounds(self, lo: int, hi: int) -> tuple[int, int]:
        """Which of all pieces those of elements [lo, hi) are."""
        first, last = np.searchsorted(self._starts, (lo, hi))
        return int(first), int(last)

    def step(self) -> None:
        self.flat.check_home(type(self).__name__)
        self._follow_flags()
        gradient = self.flat.finish_gradient()
        norms = self.norms(self.norm_partials(0, self.flat.size, gradient))
        self.update(0, self.flat.size, gradient, norms)
        self.advance()
        self.flat.mark_changed()

    def norm_partials(self, lo: int, hi: int, gradient: Array) -> npt.NDArray[np.float64]:
        """First phase for elements [lo, hi): per piece the sums of squares of parameters and direction, (n, 2) float64.

        Brings the state of these elements to the current step, and leaves in `gradient` (hi - lo,) the direction, for
        `update`.
        """
        check_row(lo)
        if hi != self.flat.size:
            check_row(hi)
        super().update(lo, hi, gradient)
        first, last = self.partial_bounds(lo, hi)
        starts = self._starts[first:last] - lo
        return np.stack([square_sums(self.flat.data[lo:hi], starts), square_sums(gradient, starts)], axis=1)

    def norms(self, partials: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Euclidean norms of each parameter and of its direction, (parameters, 2), from the sums of all pieces."""
        if partials.shape != (self.num_partials, 2):
            raise ShapeError(f"norms got partial sums of shape {partials.shape}; it takes ({self.num_partials}, 2)")
        result = np.zeros((len(self.flat.slots), 2))
        if self.num_partials:
            # One contiguous run per column, whatever memory `partials` came in.
            for column in range(2):
                result[self._filled, column] = np.add.reduceat(np.array(partials[:, column]), self._first_pieces)
        return np.sqrt(result, out=result)

    def update(self, lo: int, hi: int, gradient: Array, norms: npt.NDArray[np.float64] | None = None) -> None:
        """Second phase for elements [lo, hi): takes the step, with what `norm_partials` left in `gradient` (hi - lo,).

        Raises ShapeError without the `norms` (parameters, 2) of the current step.
        """
        self._check_part(lo, hi, gradient)
        expected = (len(self.flat.slots), 2)
        if norms is None or norms.shape != expected:
            got = "none" if norms is None else f"an array of shape {norms.shape}"
            raise ShapeError(
                f"{type(self).__name__}.update takes the norms of all parameters {expected} and got {got}; "
                "call norm_partials for all elements and norms first"
            )
        for segment, part, block in self.pieces(lo, hi):
            settings = self.param_groups[self._segments[segment].rule].settings
            parameter_norm, direction_norm = norms[self._numbers[segment]].tolist()
            block.begin(gradient[part])
            self._scaled_rule(settings, parameter_norm, direction_norm)(block)

    @abstractmethod
    def _step_rule(self, settings: Mapping[str, Any]) -> Rule:
        """First phase of one block: leaves in its gradient the direction whose norm the second phase takes."""

    @abstractmethod
    def _scaled_rule(self, settings: Mapping[str, Any], parameter_norm: float, direction_norm: float) -> Rule:
        """Second phase of one block of a parameter with these norms: the step itself."""


def keep_gradient(block: Block) -> None:
    """The first phase where the direction is the gradient."""
