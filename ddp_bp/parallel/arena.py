"""Memory that the ranks of a node share: partials, parameters, optimizer state lie in it, once a node."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ddp_bp.parallel.communicator import Array, Communicator
from ddp_bp.parallel.nodes import Nodes, share


class Arena:
    """Allocates on all ranks of a communicator alike."""

    def __init__(self, communicator: Communicator, nodes: Nodes) -> None:
        self.communicator, self.nodes = communicator, nodes

    def allocate(self, name: str, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """A zeroed array that all ranks of the node share. Collective. `name` is for the system's own tools.

        The shape may differ from node to node.
        """
        kind, num_elements = np.dtype(dtype), int(np.prod(shape))
        memory = share(self.communicator, self.nodes, num_elements * kind.itemsize, name)
        array: Array = np.frombuffer(memory, kind, num_elements).reshape(shape)
        return array
