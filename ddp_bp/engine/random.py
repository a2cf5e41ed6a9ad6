"""Random numbers from counter-based streams: the same key gives the same bits in any process.

Philox [Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11] maps (key, counter) to random words without
a state that is carried along. Its 128-bit key holds (seed, shard) and its 256-bit counter holds (position in the
draw, stream key, draw, step), so no two streams overlap.

A stream key says who draws, so that the draws of one do not depend on how often others draw. It is an integer in
[0, 2**64) that its owner keeps; 0 is for all those that have none. Draws are numbered per key.

A stream belongs to the thread, or more exactly to the context, that opened it.
"""

from __future__ import annotations

import math
from contextvars import ContextVar, Token
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

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
    num_draws: dict[int, int] = field(default_factory=dict)
    """For each stream key."""


_default: ContextVar[np.random.Generator | None] = ContextVar("default", default=None)
_keyed: ContextVar[_KeyedStream | None] = ContextVar("keyed", default=None)


def manual_seed(seed: int) -> None:
    """Starts this thread's default stream anew. Until it is called, the stream is that of seed 0."""
    _check("seed", seed, _LIMIT)
    _default.set(_philox(seed, _NO_SHARD, step=0, draw=0))


class random_stream:  # noqa: N801
    """Within a `with` block, a draw depends on the three integers, its stream key and its number under that key."""

    __slots__ = ("_stream", "_token")
    _token: Token[_KeyedStream | None]

    def __init__(self, seed: int, step: int, shard: int) -> None:
        _check("seed", seed, _LIMIT)
        _check("step", step, _LIMIT)
        _check("shard", shard, _NO_SHARD)
        self._stream = _KeyedStream(seed, step, shard)

    def __enter__(self) -> None:
        self._token = _keyed.set(self._stream)

    def __exit__(self, *error: object) -> None:
        _keyed.reset(self._token)


def generator(stream_key: int = 0) -> np.random.Generator:
    """The generator for one draw. Ask for a new one for each draw.

    In a `random_stream` block it is a generator of its own, keyed by `stream_key` and the number of the draw under it,
    so that how many numbers one draw takes does not shift the next. Elsewhere it is the thread's default stream.
    """
    keyed = _keyed.get()
    if keyed is not None:
        draw = keyed.num_draws.get(stream_key, 0)
        keyed.num_draws[stream_key] = draw + 1
        return _philox(keyed.seed, keyed.shard, keyed.step, draw, stream_key)
    default = _default.get()
    if default is None:
        manual_seed(0)
        default = _default.get()
        assert default is not None
    return default


def draw_kept(shape: tuple[int, ...], p: float, stream_key: int = 0) -> npt.NDArray[np.bool_]:
    """Booleans of `shape`, one draw, each False with probability `p`, to the nearest multiple of 2**-16.

    16 random bits for each are a third of the work of a floating number.
    """
    size = math.prod(shape)
    words = generator(stream_key).bit_generator.random_raw(-(-size // 4))
    # A fixed order of bytes, so that other machines draw the same.
    parts = np.asarray(words, "<u8").view("<u2")[:size].reshape(shape)
    return np.asarray(parts >= round(p * 2**16))


def _philox(seed: int, shard: int, step: int, draw: int, stream_key: int = 0) -> np.random.Generator:
    # NumPy counts up from the lowest word, which alone is the position within the draw.
    key = np.array([seed, _TAG | shard], np.uint64)
    counter = np.array([0, stream_key, draw, step], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _check(name: str, value: int, limit: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < limit:
        raise InputError(f"a random stream takes an integer {name} in [0, {limit}) and got {value!r}")
