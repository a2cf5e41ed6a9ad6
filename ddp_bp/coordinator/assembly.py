"""A checkpoint while its parts arrive: every rank sends slices of flat arrays, and each element must come exactly once.

Knows arrays and the messages that carry them; neither disk, nor who is waiting for the result.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddp_bp.errors import WireError
from ddp_bp.wire.codec import Buffer
from ddp_bp.wire.messages import ArrayLayout, CheckpointBegin, CheckpointChunk, CheckpointEnd, TensorLayout

Array = np.ndarray[Any, Any]


class Coverage:
    """Which elements of [0, size) have arrived, as disjoint intervals in order; neighbours are merged."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._starts: list[int] = []
        self._stops: list[int] = []

    def add(self, lo: int, hi: int) -> bool:
        """Adds [lo, hi), where 0 <= lo <= hi <= size. False, and no change, if some of it was there already."""
        if lo == hi:
            return True
        place = bisect_right(self._starts, lo)
        if place > 0 and self._stops[place - 1] > lo:
            return False
        if place < len(self._starts) and self._starts[place] < hi:
            return False
        joins_left = place > 0 and self._stops[place - 1] == lo
        joins_right = place < len(self._starts) and self._starts[place] == hi
        if joins_left and joins_right:
            self._stops[place - 1] = self._stops[place]
            del self._starts[place], self._stops[place]
        elif joins_left:
            self._stops[place - 1] = hi
        elif joins_right:
            self._starts[place] = lo
        else:
            self._starts.insert(place, lo)
            self._stops.insert(place, hi)
        return True

    def first_gap(self) -> tuple[int, int] | None:
        """The first [lo, hi) that has not arrived, None when everything has."""
        if not self._starts:
            return (0, self.size) if self.size else None
        if self._starts[0] > 0:
            return (0, self._starts[0])
        if self._stops[0] < self.size:
            return (self._stops[0], self._starts[1] if len(self._starts) > 1 else self.size)
        return None


class Assembly:
    """One checkpoint being received.

    Every method that takes a message raises WireError when it does not fit what came before; the checkpoint is then to
    be dropped as a whole, for an element that came twice shows that the ranks disagree on who owns what.
    """

    def __init__(self, begin: CheckpointBegin, world_size: int, now: float) -> None:
        """`begin` is that of the rank that came first; its layout is what the others are held to."""
        self.request_id = begin.request_id
        self.begun_at = now
        self.last_heard_at = now
        self.num_bytes = 0
        self._world_size = world_size
        self._layouts = begin.arrays
        self._manifest: Mapping[str, Any] = begin.manifest
        self._begun: set[int] = set()
        self._ended: set[int] = set()
        self._pieces: dict[int, list[tuple[str, int, int]]] = {}
        self.step = _step_of(begin)
        _check_layouts(begin.arrays)
        try:
            self._arrays: dict[str, Array] = {
                layout.name: np.empty(layout.size, np.dtype(layout.dtype).newbyteorder("<")) for layout in begin.arrays
            }
        except (MemoryError, ValueError) as error:
            raise WireError(
                f"checkpoint {begin.request_id}: rank {begin.rank} announces arrays of "
                f"{sum(layout.size for layout in begin.arrays)} elements, more than the coordinator can hold: {error}"
            ) from error
        self._coverage = {layout.name: Coverage(layout.size) for layout in begin.arrays}
        self.begin(begin, now)

    def begin(self, message: CheckpointBegin, now: float) -> None:
        """A rank joins in; one that had begun begins anew, and what it had sent is to come again."""
        who = self._name(message.rank)
        if message.world_size != self._world_size:
            raise WireError(f"{who} counts {message.world_size} ranks, expected {self._world_size}")
        if (step := _step_of(message)) != self.step:
            raise WireError(f"{who} is at step {step}, expected {self.step} as announced by the first rank")
        if message.arrays != self._layouts:
            raise WireError(f"{who} announces other arrays than the first rank; all ranks must run the same model")
        if message.rank in self._begun:
            self._forget(message.rank)
        self._begun.add(message.rank)
        if message.rank == 0:
            self._manifest = message.manifest
        self.last_heard_at = now

    def chunk(self, message: CheckpointChunk, payload: Buffer, now: float) -> None:
        """Elements arrive: `payload` holds raw little-endian ones."""
        who = self._name(message.rank)
        if message.rank not in self._begun or message.rank in self._ended:
            raise WireError(f"{who} sent elements before its begin or after its end")
        array = self._arrays.get(message.array)
        if array is None:
            raise WireError(f"{who} sent array {message.array!r}, expected one of {', '.join(self._arrays)}")
        num_bytes = memoryview(payload).nbytes
        if num_bytes % array.itemsize:
            raise WireError(
                f"{who} sent {num_bytes} bytes of array {message.array!r}, expected a multiple of {array.itemsize}"
            )
        lo = message.offset_elements
        hi = lo + num_bytes // array.itemsize
        if hi > array.size:
            raise WireError(f"{who} sent elements [{lo}, {hi}) of array {message.array!r}, which has only {array.size}")
        if not self._coverage[message.array].add(lo, hi):
            raise WireError(f"{who} sent elements [{lo}, {hi}) of array {message.array!r}, some of which came before")
        self._pieces.setdefault(message.rank, []).append((message.array, lo, hi))
        array[lo:hi] = np.frombuffer(payload, array.dtype)
        self.num_bytes += num_bytes
        self.last_heard_at = now

    def _forget(self, rank: int) -> None:
        self._ended.discard(rank)
        self._pieces[rank] = []
        self._coverage = {name: Coverage(array.size) for name, array in self._arrays.items()}
        for name, lo, hi in (piece for pieces in self._pieces.values() for piece in pieces):
            self._coverage[name].add(lo, hi)

    def end(self, message: CheckpointEnd, now: float) -> bool:
        """A rank is through. True when it was the last one and everything has arrived."""
        who = self._name(message.rank)
        if message.rank not in self._begun or message.rank in self._ended:
            raise WireError(f"{who} ended before its begin, or twice")
        self._ended.add(message.rank)
        self.last_heard_at = now
        if len(self._ended) < self._world_size:
            return False
        for name, coverage in self._coverage.items():
            if (gap := coverage.first_gap()) is not None:
                raise WireError(
                    f"checkpoint {self.request_id}: elements [{gap[0]}, {gap[1]}) of array {name!r} came from no rank"
                )
        return True

    def missing_ranks(self) -> list[int]:
        """Ranks that have not sent everything yet."""
        return [rank for rank in range(self._world_size) if rank not in self._ended]

    def result(self) -> tuple[Mapping[str, Any], dict[str, Array], dict[str, Array]]:
        """The manifest's fields as rank 0 sent them, and the tensors of the model and of the optimizer by name.

        The tensors are views of the assembled arrays, in the shapes announced.
        """
        files: dict[str, dict[str, Array]] = {"model": {}, "optimizer": {}}
        for layout in self._layouts:
            flat = self._arrays[layout.name]
            for tensor in layout.tensors:
                size = math.prod(tensor.shape)
                files[layout.file][tensor.name] = flat[tensor.offset : tensor.offset + size].reshape(tensor.shape)
        return self._manifest, files["model"], files["optimizer"]

    def _name(self, rank: int) -> str:
        return f"checkpoint {self.request_id}: rank {rank}"


def _step_of(begin: CheckpointBegin) -> int:
    step = begin.manifest.get("step")
    if type(step) is not int or step < 0:
        raise WireError(
            f"checkpoint {begin.request_id}: rank {begin.rank} sent a manifest with step {step!r}, expected an integer"
        )
    return step


def _check_layouts(layouts: Sequence[ArrayLayout]) -> None:
    """Arrays and tensors must have names of their own, and tensors must lie in their array without overlap.

    Tied weights are one tensor under several names: tensors may be the very same elements in the same shape.
    """
    arrays: set[str] = set()
    tensors: set[tuple[str, str]] = set()
    for layout in layouts:
        if layout.name in arrays:
            raise WireError(f"array {layout.name!r} is announced twice")
        arrays.add(layout.name)
        used = Coverage(layout.size)
        known: set[tuple[int, tuple[int, ...]]] = set()
        for tensor in layout.tensors:
            key = (layout.file, tensor.name)
            if key in tensors:
                raise WireError(f"tensor {tensor.name!r} of the {layout.file} file is announced twice")
            tensors.add(key)
            place = (tensor.offset, tuple(tensor.shape))
            if place not in known:
                _claim(used, layout, tensor)
            known.add(place)


def _claim(used: Coverage, layout: ArrayLayout, tensor: TensorLayout) -> None:
    stop = tensor.offset + math.prod(tensor.shape)
    if stop > layout.size or not used.add(tensor.offset, stop):
        raise WireError(
            f"tensor {tensor.name!r}: elements [{tensor.offset}, {stop}) lie outside array {layout.name!r} of "
            f"{layout.size} elements, or overlap another tensor"
        )
