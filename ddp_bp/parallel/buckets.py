"""Buckets: the pieces in which a gradient is exchanged while backward goes on, and which of them are complete.

Pure functions of numbers, and a count. Knows neither ranks nor what the elements are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ddp_bp.parallel.communicator import Bounds
from ddp_bp.parallel.membership import SLICE_ALIGNMENT_ELEMENTS


def cut_buckets(num_parameters: int, num_elements: int, bucket_elements: int) -> list[Bounds]:
    """A vector whose first `num_parameters` elements are a gradient, cut into contiguous buckets [lo, hi).

    They come in the order in which backward completes them: the last parameters first. What follows the gradient is
    known only when all is over, and is a bucket of its own, the last one.
    """
    length = max(1, bucket_elements // SLICE_ALIGNMENT_ELEMENTS) * SLICE_ALIGNMENT_ELEMENTS
    starts = range(0, num_parameters, length)
    buckets = [(lo, min(lo + length, num_parameters)) for lo in reversed(starts)]
    if num_parameters < num_elements:
        buckets.append((num_parameters, num_elements))
    return buckets


class Countdown:
    """Follows which of some buckets are complete, in their order."""

    def __init__(self, buckets: Sequence[Bounds]) -> None:
        self._buckets = buckets
        self.begin()

    def begin(self) -> None:
        """Nothing is complete."""
        self._missing = [hi - lo for lo, hi in self._buckets]
        self._next = 0

    def finish(self, lo: int, hi: int) -> Iterator[Bounds]:
        """Elements [lo, hi) are complete, of which none was before. The buckets whose turn has come with that."""
        for number, (first, last) in enumerate(self._buckets):
            self._missing[number] -= max(0, min(hi, last) - max(lo, first))
        while self._next < len(self._buckets) and self._missing[self._next] == 0:
            self._next += 1
            yield self._buckets[self._next - 1]

    def rest(self) -> Iterator[Bounds]:
        """All else is complete as well. The buckets whose turn had not come."""
        while self._next < len(self._buckets):
            self._next += 1
            yield self._buckets[self._next - 1]
