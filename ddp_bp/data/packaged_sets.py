"""The data sets that come with the package; their sources and licences lie beside them.

It must not know about files of the user's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

from ddp_bp.data.arrays import open_npz
from ddp_bp.data.compressed import unpacked
from ddp_bp.data.public_sets import PUBLIC
from ddp_bp.data.source import Source, suggestion
from ddp_bp.errors import DataError


@dataclass(frozen=True)
class PackagedSet:
    """A file in `packaged/`. `about` is one line for people; `input_limit` divides the array x of a `.npz` file."""

    file_name: str
    about: str
    licence: str
    input_limit: int = 1


PACKAGED = MappingProxyType(
    {
        "digits": PackagedSet(
            "digits.npz", "1797 handwritten digits of 8 x 8 pixels, 10 classes", "CC BY 4.0", input_limit=16
        ),
        "diabetes": PackagedSet("diabetes.npz", "442 patients with 10 measurements each, regression", "BSD 3-Clause"),
    }
)
"""Arrays x and y in a `.npz` file."""

PACKAGED_TEXTS = MappingProxyType(
    {
        "tinyshakespeare": PackagedSet(
            "tinyshakespeare.txt.gz", "1.1 million characters of Shakespeare's plays", "public domain"
        ),
    }
)
"""Texts in UTF-8, compressed."""


def read_packaged(name: str) -> Source:
    """The packaged arrays of that name. Raises DataError for an unknown name."""
    packaged = PACKAGED.get(name)
    if packaged is None:
        names = (*PACKAGED, *PACKAGED_TEXTS, *PUBLIC)
        raise DataError(
            f"there is no packaged data set {name!r}; there is {', '.join(map(repr, names))}; "
            f"for a file of your own set `path` instead{suggestion(name, names)}"
        )
    with (files("ddp_bp.data") / "packaged" / packaged.file_name).open("rb") as file:
        inputs, targets = open_npz(file, name, ("x", "y"))
    return Source(inputs, targets, name, name, input_limit=packaged.input_limit)


def packaged_text(name: str) -> bytes:
    """The packaged text of that name, which must be one of `PACKAGED_TEXTS`, in UTF-8."""
    path = files("ddp_bp.data") / "packaged" / PACKAGED_TEXTS[name].file_name
    return unpacked(path.read_bytes(), name)
