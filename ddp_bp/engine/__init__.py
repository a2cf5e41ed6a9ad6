"""Tensors, the recorded graph and its reverse pass. Knows NumPy and nothing else of the package but its errors.

ops/           arithmetic on arrays: each operation beside its vector-Jacobian product; one table, OPERATIONS
graph.py       nodes, leaves and the reverse pass, which knows no operation by name
value.py       an array with its place in the graph
record.py      running an operation on values and recording it
tensor.py      what users hold: a value with PyTorch's operators and methods
arguments.py   what users may write as arguments, turned into what operations take
inplace.py     changing a value in place without leaving a wrong gradient behind
methods.py, axis_methods.py
               more of PyTorch's methods of tensors: elementwise, and along axes
functional.py, functional_arrays.py, functional_losses.py
               the operations as functions of tensors
random.py      counter-based random streams
profiling.py   every operation that runs, with its times, work and place in the graph
flat.py        all parameters, and all gradients, as one vector each
buffers.py     what a model carries along without training it, over several shards
shard_group.py sums over all shards of a batch
gradcheck.py   recorded gradients against central differences
"""

from __future__ import annotations

from ddp_bp.engine.flat import FlatParameters, Slot
from ddp_bp.engine.functional import maximum, minimum, where
from ddp_bp.engine.functional_arrays import broadcast_tensors, cat, einsum, split, stack
from ddp_bp.engine.gradcheck import gradcheck
from ddp_bp.engine.graph import is_grad_enabled, no_grad
from ddp_bp.engine.ops import OPERATIONS
from ddp_bp.engine.random import generator, manual_seed, random_stream
from ddp_bp.engine.tensor import Parameter, Tensor, tensor

__all__ = [
    "OPERATIONS",
    "FlatParameters",
    "Parameter",
    "Slot",
    "Tensor",
    "broadcast_tensors",
    "cat",
    "einsum",
    "generator",
    "gradcheck",
    "is_grad_enabled",
    "manual_seed",
    "maximum",
    "minimum",
    "no_grad",
    "random_stream",
    "split",
    "stack",
    "tensor",
    "where",
]
