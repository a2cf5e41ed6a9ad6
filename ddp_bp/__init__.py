"""Data-parallel training on CPU clusters, with the same bits for any number of workers.

    import ddp_bp as ddp
    from ddp_bp import nn, optim

Importing the package loads nothing else: the names below are looked up when they are first used. The command line
needs that, because the variables that size BLAS's thread pool only count before NumPy is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ddp_bp._version import __version__

if TYPE_CHECKING:
    from ddp_bp import nn, optim
    from ddp_bp.engine import (
        Tensor,
        broadcast_tensors,
        cat,
        einsum,
        gradcheck,
        manual_seed,
        maximum,
        minimum,
        no_grad,
        random_stream,
        split,
        stack,
        tensor,
        where,
    )

__all__ = [
    "__version__",
    "Tensor",
    "broadcast_tensors",
    "cat",
    "einsum",
    "gradcheck",
    "manual_seed",
    "maximum",
    "minimum",
    "nn",
    "no_grad",
    "optim",
    "random_stream",
    "split",
    "stack",
    "tensor",
    "where",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("nn", "optim"):
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module(f"{__name__}.engine"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
