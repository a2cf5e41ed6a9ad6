"""Summing a rank's last shard by carry while its backward pass goes on, so that buckets can be exchanged early.

When the gradient of a bucket has come to its end, the bucket is added to the sums that wait for it, as `shards` does
for whole vectors, and is released. Sums are element by element, so their bits are the same. Knows no other rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ddp_bp.parallel.bucket_exchange import BucketExchange
from ddp_bp.parallel.buckets import Countdown
from ddp_bp.parallel.communicator import Array, Bounds


class EarlyCarry:
    """The last carry of one rank's step."""

    def __init__(self, exchange: BucketExchange) -> None:
        self._exchange = exchange
        self._countdown = Countdown(exchange.buckets)
        self._chain: Sequence[tuple[Array, Array]] = ()

    def begin(self, chain: Sequence[tuple[Array, Array]]) -> None:
        """The last shard begins. `chain`: which vector (N,) is then to be added to by which other, in order."""
        self._chain = chain
        self._countdown.begin()

    def report(self, lo: int, hi: int) -> None:
        """Elements [lo, hi) of the last shard's vector are complete."""
        self._carry(self._countdown.finish(lo, hi))

    def finish(self) -> None:
        """All of them are."""
        self._carry(self._countdown.rest())

    def _carry(self, buckets: Iterable[Bounds]) -> None:
        for lo, hi in buckets:
            for left, right in self._chain:
                left[lo:hi] += right[lo:hi]
            self._exchange.release()
