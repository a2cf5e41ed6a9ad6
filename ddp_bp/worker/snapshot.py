"""The state of a run as flat arrays: copied aside for a checkpoint, and put back at a resume.

Every rank sends only the slices that it updates, so that the ranks share the work and the step stands still for one
memory copy; what all ranks hold whole (buffers) is sent by rank 0. Names, shapes and orientation are those of the
equivalent PyTorch `state_dict`, in which tied weights stand under each of their names. Knows no sockets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ddp_bp.engine.buffers import Buffers
from ddp_bp.engine.flat import FlatParameters
from ddp_bp.errors import CheckpointError
from ddp_bp.nn import Module
from ddp_bp.optim import ExponentialMovingAverage, Optimizer
from ddp_bp.parallel.apart import allocate_apart
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.membership import clip_bounds
from ddp_bp.wire.messages import ArrayLayout, CheckpointFile, TensorLayout
from ddp_bp.worker.compression import Compression

Array = npt.NDArray[Any]

PIECE_BYTES: Final = 16 * 1024 * 1024
"""What is put back at a time, so that a rank which waits for much of it on a slow link is seen to make progress."""


@dataclass(frozen=True)
class _Flat:
    """A flat array of the state: the file that it goes to, what of it this rank sends, and the tensors in it."""

    name: str
    file: CheckpointFile
    values: Array
    bounds: tuple[int, int]
    tensors: list[TensorLayout]


class Snapshot:
    """One rank's view of the state: which flat arrays there are, and a staging copy of what this rank sends of each."""

    def __init__(
        self,
        model: Module,
        parameters: FlatParameters,
        optimizer: Optimizer,
        buffers: Buffers,
        average: ExponentialMovingAverage | None,
        bounds: tuple[int, int],
        rank: int,
        compression: Compression | None = None,
    ) -> None:
        """`bounds`: the slice [lo, hi) of the flat vector that this rank hands in, besides what is its shards' own."""
        self._parameters, self._optimizer = parameters, optimizer
        self._buffers, self._average, self._compression = buffers, average, compression
        self.tied, buffer_names = _names(model, parameters, buffers)
        self.buffer_names = tuple(name for names in buffer_names for name in names)
        """The tensors of the model that are not parameters, each under all its names."""
        own = clip_bounds(bounds, 0, parameters.size)
        state = {**optimizer.state, **(average.state if average else {})}
        self._flats = [
            _Flat("parameters", "model", parameters.data, own, self._parameter_tensors()),
            *(_Flat(name, "optimizer", array, own, self._state_tensors(name)) for name, array in state.items()),
            *self._errors(),
            *(
                _Flat(
                    f"buffer {names[0]}",
                    "model",
                    array.reshape(-1),
                    (0, array.size if rank == 0 else 0),
                    [TensorLayout(name, list(array.shape), 0) for name in names],
                )
                for names, array in zip(buffer_names, buffers.committed, strict=True)
            ),
        ]
        self._staging = {flat.name: allocate_apart(_part(flat).size, flat.values.dtype) for flat in self._flats}
        for flat in self._flats:
            np.copyto(self._staging[flat.name], _part(flat))
        self.num_pieces_restored = 0

    def layouts(self) -> list[ArrayLayout]:
        """The flat arrays and the tensors in them, the same on every rank."""
        return [
            ArrayLayout(
                name=flat.name,
                file=flat.file,
                dtype=flat.values.dtype.name,  # type: ignore[arg-type]
                size=flat.values.size,
                tensors=flat.tensors,
            )
            for flat in self._flats
        ]

    def capture(self) -> None:
        """Copy this rank's parts aside. Until `pieces` has been sent, do not capture again."""
        if self._compression is not None:
            self._compression.settle()
        for flat in self._flats:
            np.copyto(self._staging[flat.name], _part(flat))

    def pieces(self, chunk_bytes: int) -> Iterator[tuple[str, int, memoryview]]:
        """The captured parts as (array name, offset in elements, bytes), each at most `chunk_bytes` long."""
        for flat in self._flats:
            array = self._staging[flat.name]
            num_elements = max(1, chunk_bytes // array.itemsize)
            for start in range(0, array.size, num_elements):
                # Bytes of any dtype: memoryview knows no float16 or bool of NumPy's.
                piece = array[start : start + num_elements].view(np.uint8)
                yield flat.name, flat.bounds[0] + start, piece.data

    def restore(
        self, model: Mapping[str, Array], optimizer: Mapping[str, Array], num_updates: int, communicator: Communicator
    ) -> None:
        """Put back the state of a checkpoint that rank 0 has read and passed to `check`. Collective.

        The other ranks pass empty mappings. `num_updates`: how often the optimizer has moved the parameters.
        """
        if self._compression is not None:
            self._compression.settle()
        for flat in self._flats:
            if communicator.rank == 0:
                for tensor, part in _parts(flat):
                    part[...] = (model if flat.file == "model" else optimizer)[tensor.name].reshape(-1)
            num_elements = max(1, PIECE_BYTES // flat.values.itemsize)
            for start in range(0, flat.values.size, num_elements):
                communicator.broadcast(flat.values[start : start + num_elements], root=0)
                self.num_pieces_restored += 1
        self._optimizer.num_steps = num_updates
        if self._average is not None:
            self._average.num_updates = num_updates
        self._parameters.mark_changed()
        self._buffers.begin()

    def check(self, model: Mapping[str, Array], optimizer: Mapping[str, Array]) -> None:
        """Raise CheckpointError unless the tensors are those of this model and optimizer."""
        for flat in self._flats:
            tensors = model if flat.file == "model" else optimizer
            for layout, _ in _parts(flat):
                tensor = tensors.get(layout.name)
                got = "nothing" if tensor is None else f"{tensor.dtype.name} {tensor.shape}"
                expected = f"{flat.values.dtype.name} {tuple(layout.shape)}"
                if got != expected:
                    raise CheckpointError(
                        f"tensor {layout.name!r} of the checkpoint: expected {expected}, got {got}. "
                        "It was written by another model or optimizer"
                    )

    def _parameter_tensors(self) -> list[TensorLayout]:
        slots = {slot.name: slot for slot in self._parameters.slots}
        names = {**{name: name for name in slots}, **self.tied}
        return [TensorLayout(name, list(slots[first].shape), slots[first].offset) for name, first in names.items()]

    def _errors(self) -> Iterator[_Flat]:
        """What rounding has taken from each shard's gradients, each from the rank that has the shard."""
        if self._compression is not None:
            for shard, values in enumerate(self._compression.settle()):
                size = values.size if shard in self._compression.own_shards else 0
                name = f"compression_error.{shard}"
                yield _Flat(name, "optimizer", values, (0, size), self._state_tensors(name))

    def _state_tensors(self, state: str) -> list[TensorLayout]:
        return [TensorLayout(f"{slot.name}.{state}", list(slot.shape), slot.offset) for slot in self._parameters.slots]


def _names(model: Module, parameters: FlatParameters, buffers: Buffers) -> tuple[dict[str, str], list[tuple[str, ...]]]:
    """The further names of tied parameters with the one that they have a slot under, and all names of each buffer."""
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in model.named_state():
        by_tensor.setdefault(id(tensor), []).append(name)
    all_names = {names[0]: tuple(names) for names in by_tensor.values()}
    tied = {name: slot.name for slot in parameters.slots for name in all_names[slot.name][1:]}
    return tied, [all_names[name] for name in buffers.names]


def _part(flat: _Flat) -> Array:
    lo, hi = flat.bounds
    return flat.values[lo:hi]


def _parts(flat: _Flat) -> Iterator[tuple[TensorLayout, Array]]:
    for tensor in flat.tensors:
        size = int(np.prod(tensor.shape))
        yield tensor, flat.values[tensor.offset : tensor.offset + size]
