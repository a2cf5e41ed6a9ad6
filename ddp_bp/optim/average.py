"""The exponential moving average of the weights: what to evaluate, beside what is trained. Knows no optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from ddp_bp.engine.flat import FlatParameters
from ddp_bp.engine.ops.operation import Array
from ddp_bp.engine.tensor import Parameter
from ddp_bp.errors import ShapeError
from ddp_bp.optim import state as saved
from ddp_bp.optim.optimizer import BLOCK_SIZE
from ddp_bp.optim.settings import fraction
from ddp_bp.optim.state import Allocate


class ExponentialMovingAverage:
    """average = p after the first update, later decay * average + (1 - decay) * p, for each element.

    As torch.optim.swa_utils.AveragedModel with `get_ema_avg_fn(decay)`. Call `step` after the optimizer's. The average
    is kept in `state["ema"]` (P,), in memory from `allocate(name, size, dtype)` if that is given.
    """

    def __init__(
        self,
        params: FlatParameters | Iterable[tuple[str, Parameter] | Parameter],
        decay: float = 0.999,
        *,
        allocate: Allocate | None = None,
    ) -> None:
        self.flat = FlatParameters.of(params)
        self.decay = fraction("decay", decay)
        self.num_updates = 0
        self.state: dict[str, Array] = {"ema": saved.allocate_vector(allocate, "ema", self.flat)}
        self._scratch = np.empty(min(BLOCK_SIZE, self.flat.size), self.flat.dtype)

    def step(self) -> None:
        """Takes the current weights into the average."""
        self.flat.check_home(type(self).__name__)
        self.update(0, self.flat.size)
        self.advance()

    def update(self, lo: int, hi: int) -> None:
        """`step` for elements [lo, hi) only. It is complete once every element was updated, and `advance` called."""
        if not 0 <= lo <= hi <= self.flat.size:
            raise ShapeError(f"update of elements [{lo}, {hi}) of {self.flat.size}")
        data, average = self.flat.data, self.state["ema"]
        if self.num_updates == 0:
            average[lo:hi] = data[lo:hi]
            return
        for start in range(lo, hi, BLOCK_SIZE):
            stop = min(start + BLOCK_SIZE, hi)
            part, scratch = average[start:stop], self._scratch[: stop - start]
            np.subtract(data[start:stop], part, out=scratch)
            scratch *= 1.0 - self.decay
            part += scratch

    def advance(self) -> None:
        """Counts the update."""
        self.num_updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the parameters have the averaged values; afterwards their own again."""
        self.flat.check_home(type(self).__name__)
        own = self.flat.data.copy()
        try:
            if self.num_updates:
                np.copyto(self.flat.data, self.state["ema"])
                self.flat.mark_changed()
            yield
        finally:
            np.copyto(self.flat.data, own)
            self.flat.mark_changed()

    def state_dict(self) -> dict[str, Array]:
        """A copy: "<parameter>.ema" in the parameter's shape, and "num_updates" as int64 of shape ()."""
        return saved.save(self.flat, self.state, "num_updates", self.num_updates)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave. If something does not fit: InputError lists it, nothing changes."""
        self.num_updates = saved.restore(type(self).__name__, self.flat, self.state, "num_updates", state)
