"""The state of a run as flat arrays: copied aside for a checkpoint, and put back at a resume.

Every rank sends only the slices that it updates, so that the ranks share the work and the step stands still for one
memory copy. Names, shapes and orientation are those of the equivalent PyTorch `state_dict`. Knows no sockets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ddp_bp.engine.flat import FlatParameters
from ddp_bp.errors import CheckpointError
from ddp_bp.optim import Optimizer
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.wire.messages import ArrayLayout, TensorLayout

Array = npt.NDArray[Any]


class Snapshot:
    """One rank's view of the state: which flat arrays there are, and a staging copy of its own slice of each."""

    def __init__(self, parameters: FlatParameters, optimizer: Optimizer, bounds: tuple[int, int]) -> None:
        """`bounds`: the slice [lo, hi) of the flat vector that this rank updates."""
        self._parameters, self._optimizer = parameters, optimizer
        self._bounds = bounds
        lo, hi = bounds
        self._staging = {name: np.empty(hi - lo, array.dtype) for name, array in self._arrays().items()}

    def _arrays(self) -> dict[str, Array]:
        return {"parameters": self._parameters.data, **self._optimizer.state}

    def layouts(self) -> list[ArrayLayout]:
        """The flat arrays and the tensors in them, the same on every rank."""
        return [
            ArrayLayout(
                name=name,
                file="model" if name == "parameters" else "optimizer",
                dtype=array.dtype.name,  # type: ignore[arg-type]
                size=array.size,
                tensors=[
                    TensorLayout(_tensor_name(name, slot.name), list(slot.shape), slot.offset)
                    for slot in self._parameters.slots
                ],
            )
            for name, array in self._arrays().items()
        ]

    def capture(self) -> None:
        """Copy this rank's slices aside. Until `pieces` has been sent, do not capture again."""
        lo, hi = self._bounds
        for name, array in self._arrays().items():
            np.copyto(self._staging[name], array[lo:hi])

    def pieces(self, chunk_bytes: int) -> Iterator[tuple[str, int, memoryview]]:
        """The captured slices as (array name, offset in elements, bytes), each at most `chunk_bytes` long."""
        lo, _ = self._bounds
        for name, array in self._staging.items():
            num_elements = max(1, chunk_bytes // array.itemsize)
            for start in range(0, array.size, num_elements):
                yield name, lo + start, array[start : start + num_elements].data.cast("B")

    def restore(
        self, model: Mapping[str, Array], optimizer: Mapping[str, Array], step: int, communicator: Communicator
    ) -> None:
        """Put back the state of a checkpoint that rank 0 has read and passed to `check`. Collective.

        The other ranks pass empty mappings.
        """
        for name, array in self._arrays().items():
            if communicator.rank == 0:
                _fill(array, name, self._parameters, model if name == "parameters" else optimizer)
            communicator.broadcast(array, root=0)
        self._optimizer.num_steps = step
        self._parameters.mark_changed()

    def check(self, model: Mapping[str, Array], optimizer: Mapping[str, Array]) -> None:
        """Raise CheckpointError unless the tensors are those of this model and optimizer."""
        for name, array in self._arrays().items():
            tensors = model if name == "parameters" else optimizer
            for slot in self._parameters.slots:
                tensor = tensors.get(_tensor_name(name, slot.name))
                got = "nothing" if tensor is None else f"{tensor.dtype.name} {tensor.shape}"
                expected = f"{array.dtype.name} {slot.shape}"
                if got != expected:
                    raise CheckpointError(
                        f"tensor {_tensor_name(name, slot.name)!r} of the checkpoint: expected {expected}, got {got}. "
                        "It was written by another model or optimizer"
                    )


def _tensor_name(array: str, parameter: str) -> str:
    return parameter if array == "parameters" else f"{parameter}.{array}"


def _fill(array: Array, name: str, parameters: FlatParameters, tensors: Mapping[str, Array]) -> None:
    for slot in parameters.slots:
        array[slot.offset : slot.offset + slot.size] = tensors[_tensor_name(name, slot.name)].reshape(-1)
