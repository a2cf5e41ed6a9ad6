"""Values that a model carries along without training them (running statistics), where a batch is cut into shards.

Each shard starts from the same committed values and moves its copy; all of them then move by the mean of the moves. So
the result does not depend on who computed which shard, and a value that no shard changes keeps its bits. This module
knows neither modules nor shards: it sees tensors, and vectors of moves.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ddp_bp.engine.ops.operation import Array
from ddp_bp.engine.tensor import Tensor
from ddp_bp.errors import InputError


class Buffers:
    """The buffers of a model, which must be changed in place.

    Writing to them here is no change in the sense of the graph: it happens between the passes of shards.
    """

    def __init__(self, named_buffers: Iterable[tuple[str, Tensor]]) -> None:
        named = list(named_buffers)
        self.names = tuple(name for name, _ in named)
        self._arrays = [buffer._array for _, buffer in named]
        self.committed = tuple(array.copy() for array in self._arrays)
        """The values that all shards start from, one array per name; to be changed by `restore` and `commit` only."""
        self.size = sum(array.size for array in self._arrays)
        """The number of elements of all buffers."""

    def begin(self) -> None:
        """Gives the buffers their committed values."""
        self.resume(self.committed)

    def moves(self, out: Array) -> None:
        """Writes into `out` (size,), of a floating dtype, by how much each element has moved since `begin`.

        Raises InputError if a buffer has left infinity, since there is no mean of such moves.
        """
        position = 0
        for name, array, before in zip(self.names, self._arrays, self.committed, strict=True):
            part = out[position : position + array.size].reshape(array.shape)
            if array.dtype.kind == "f":
                # Not where nothing has changed: infinity minus infinity is no move of 0.
                part.fill(0)
                np.subtract(array, before, out=part, where=array != before, casting="same_kind")
                if not np.isfinite(before[array != before]).all():
                    raise InputError(
                        f"buffer {name!r} has moved away from a value that is not finite; all shards of a batch start "
                        "from the same buffers, which then move by the mean of the shards' moves. Start it at a number"
                    )
            else:
                # Large numbers would lose their last digits in a floating dtype; their difference is small.
                np.copyto(part, array.astype(np.int64) - before.astype(np.int64), casting="unsafe")
            position += array.size

    def commit(self, moves: Array) -> None:
        """Moves the committed values by `moves` (size,), and gives them to the buffers. Whole numbers move by whole."""
        position = 0
        for value in self.committed:
            move = moves[position : position + value.size].reshape(value.shape)
            position += value.size
            if value.dtype.kind == "f":
                np.add(value, move, out=value, where=move != 0, casting="same_kind")
            else:
                moved = value.astype(np.int64) + np.rint(move).astype(np.int64)
                np.copyto(value, moved, casting="unsafe")
        self.begin()

    def restore(self, values: Iterable[Array]) -> None:
        """Commits other values, one array of the same shape and dtype per name."""
        self.resume(values)
        for mine, array in zip(self.committed, self._arrays, strict=True):
            np.copyto(mine, array)

    def suspend(self) -> list[Array]:
        """A copy of the current values, for `resume`."""
        return [array.copy() for array in self._arrays]

    def resume(self, values: Iterable[Array]) -> None:
        """Gives the buffers `values`, one array per name."""
        for array, value in zip(self._arrays, values, strict=True):
            np.copyto(array, value)
