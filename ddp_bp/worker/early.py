"""Summing a rank's last shard by carry while its backward pass goes on, so that buckets can be exchanged early.

When the gradient of a bucket has come to its end, the bucket is added to the sums that wait for it, as `shards` does
for whole vectors, and is released. Sums are element by element, so their bits are the same. Knows no other rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ddp_bp.parallel.bfloat16 import add_rounded
from ddp_bp.parallel.bucket_exchange import BucketExchange
from ddp_bp.parallel.buckets import Countdown
from ddp_bp.parallel.communicator import Array, Bounds


class EarlyCarry:
    """The last carry of one rank's step."""

    def __init__(self, exchange: BucketExchange, num_rounded: int = 0) -> None:
        """`num_rounded`: how many elements, from the first, have sums that are rounded to bfloat16."""
        self._exchange = exchange
        self._countdown = Countdown(exchange.buckets)
        self._num_rounded = num_rounded
        self._chain: Sequence[tuple[Array, Array]] = ()
        self._prepare: Callable[[int, int], None] = _leave

    def begin(self, chain: Sequence[tuple[Array, Array]], prepare: Callable[[int, int], None] | None = None) -> None:
        """The last shard begins.

        Args:
            chain: which vector (N,) is then to be added to by which other, in order.
            prepare: is called for each bucket [lo, hi) of the shard before that.
        """
        self._chain, self._prepare = chain, prepare or _leave
        self._countdown.begin()

    def report(self, lo: int, hi: int) -> None:
        """Elements [lo, hi) of the last shard's vector are complete."""
        self._carry(self._countdown.finish(lo, hi))

    def finish(self) -> None:
        """All of them are."""
        self._carry(self._countdown.rest())

    def _carry(self, buckets: Iterable[Bounds]) -> None:
        for lo, hi in buckets:
            self._prepare(lo, hi)
            for left, right in self._chain:
                add_rounded(left[lo:hi], right[lo:hi], self._num_rounded - lo)
            self._exchange.release()


def _leave(lo: int, hi: int) -> None:
    """A shard's gradient is summed as it is."""
