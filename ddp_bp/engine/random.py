"""Random numbers from counter-based streams: the same key gives the same bits in any process.

Philox [Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11] maps (key, counter) to random words without
a state that is carried along. Its 128-bit key holds (seed, shard) and its 256-bit counter holds (position in the
draw, draw, step), so no two streams overlap, and there is no hashing that could make them collide.

A stream belongs to the thread, or more exactly to the context, that opened it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np

from ddp_bp.errors import InputError

_LIMIT = 2**64
# Set in the second word of every key here. Orders of samples and augmentation, which draw from the same seed, use keys
# without it, so that no stream of theirs can be one of ours.
_TAG = 2**63
# The shard number of the default stream, so that it differs from every keyed one.
_NO_SHARD = _TAG - 1


@dataclass(slots=True)
class _KeyedStream:
    seed: int
    step: int
    shard: int
    num_draws: int = 0


_default: ContextVar[np.random.Generator | None] = ContextVar("default", default=None)
_keyed: ContextVar[_KeyedStream | None] = ContextVar("keyed", default=None)


def manual_seed(seed: int) -> None:
    """Starts this thread's default stream anew. Until it is called, the stream is that of seed 0."""
    _check("seed", seed, _LIMIT)
    _default.set(_philox(seed, _NO_SHARD, step=0, draw=0))


@contextmanager
def random_stream(seed: int, step: int, shard: int) -> Iterator[None]:
    """Within the block, draws depend on the three integers and on how many draws came before in the block only."""
    _check("seed", seed, _LIMIT)
    _check("step", step, _LIMIT)
    _check("shard", shard, _NO_SHARD)
    token = _keyed.set(_KeyedStream(seed, step, shard))
    try:
        yield
    finally:
        _keyed.reset(token)


def generator() -> np.random.Generator:
    """The generator for one draw. Ask for a new one for each draw.

    In a `random_stream` block it is a generator of its own, keyed by the number of the draw, so that how many numbers
    one module takes does not shift those of the next. Elsewhere it is the thread's default stream.
    """
    keyed = _keyed.get()
    if keyed is not None:
        draw = keyed.num_draws
        keyed.num_draws = draw + 1
        return _philox(keyed.seed, keyed.shard, keyed.step, draw)
    default = _default.get()
    if default is None:
        manual_seed(0)
        default = _default.get()
        assert default is not None
    return default


def _philox(seed: int, shard: int, step: int, draw: int) -> np.random.Generator:
    # NumPy counts up from the lowest word, so that the lowest two are the position within the draw.
    key = np.array([seed, _TAG | shard], np.uint64)
    counter = np.array([0, 0, draw, step], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _check(name: str, value: int, limit: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < limit:
        raise InputError(f"a random stream takes an integer {name} in [0, {limit}) and got {value!r}")
