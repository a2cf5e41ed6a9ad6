"""Sums over all shards of a batch, for modules whose statistics are those of the whole batch.

Who computes the shards opens a group for each of them; without one, the batch at hand is the only shard. This module
knows neither who the others are nor how the sum comes about, only that all shards take part in it alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from ddp_bp.engine.ops.operation import Array


class ShardGroup(Protocol):
    """One shard's way to the others."""

    def total(self, values: Array) -> Array:
        """The sum of `values` (k,) float64 over all shards, the same bits on each of them.

        Every shard that has samples must ask the same number of times, each time with as many values.
        """


_group: ContextVar[ShardGroup | None] = ContextVar("shard_group", default=None)


@contextmanager
def shard_group(group: ShardGroup) -> Iterator[None]:
    """Within the block, what this thread computes is one shard of `group`."""
    token = _group.set(group)
    try:
        yield
    finally:
        _group.reset(token)


def current_group() -> ShardGroup | None:
    """The group of the shard that is being computed; None if it is alone."""
    return _group.get()
