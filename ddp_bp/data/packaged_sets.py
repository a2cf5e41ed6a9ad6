"""The data sets that come with the package; their licences lie beside them.

It must not know about files of the user's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

import numpy as np

from ddp_bp.data.arrays import open_npz
from ddp_bp.data.source import Source, suggestion
from ddp_bp.errors import DataError


@dataclass(frozen=True)
class PackagedSet:
    """A file in `packaged/` with arrays x and y; inputs are divided by `input_limit` to lie in [0, 1]."""

    file_name: str
    input_limit: int


PACKAGED = MappingProxyType({"digits": PackagedSet("digits.npz", input_limit=16)})


def read_packaged(name: str) -> Source:
    """The packaged data set of that name, inputs as float32 in [0, 1]. Raises DataError for an unknown name."""
    packaged = PACKAGED.get(name)
    if packaged is None:
        raise DataError(
            f"there is no packaged data set {name!r}; there is {', '.join(map(repr, PACKAGED))}; "
            f"for a file of your own set `path` instead{suggestion(name, PACKAGED)}"
        )
    with (files("ddp_bp.data") / "packaged" / packaged.file_name).open("rb") as file:
        raw, labels = open_npz(file, name, ("x", "y"))
    return Source(raw.astype(np.float32) / np.float32(packaged.input_limit), labels, name, name)
