"""Public sets of images that are too large to package: what they consist of, and where they are on this machine.

Each is four IDX files with an official division into training and test samples. How they get here is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from ddp_bp.data.idx import read_idx
from ddp_bp.data.source import Parts, Source
from ddp_bp.errors import DataError

SYSTEM_FOLDER: Final = Path("/usr/share/datasets")
"""Where Debian's packages put data sets, each in a folder of its name."""


@dataclass(frozen=True)
class PublicFile:
    """An IDX file: its usual name without `.gz`, and its size and SHA-256 when it is not compressed.

    They are those of the content, since the same content is compressed differently in different places.
    """

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class PublicSet:
    """Images and labels for training, then for testing; public addresses of folders that have them, with `.gz`."""

    about: str
    licence: str
    files: tuple[PublicFile, PublicFile, PublicFile, PublicFile]
    addresses: tuple[str, ...]
    debian_package: str | None = None
    num_classes: int = 10


PUBLIC = MappingProxyType(
    {
        "mnist": PublicSet(
            about="70000 handwritten digits of 28 x 28 pixels, 10 classes",
            licence="CC BY-SA 3.0, Y. LeCun and C. Cortes",
            files=(
                PublicFile(
                    "train-images-idx3-ubyte",
                    47_040_016,
                    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                ),
                PublicFile(
                    "train-labels-idx1-ubyte",
                    60_008,
                    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                ),
                PublicFile(
                    "t10k-images-idx3-ubyte",
                    7_840_016,
                    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                ),
                PublicFile(
                    "t10k-labels-idx1-ubyte",
                    10_008,
                    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
                ),
            ),
            addresses=(
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
            ),
        ),
        "fashion-mnist": PublicSet(
            about="70000 pieces of clothing of 28 x 28 pixels, 10 classes",
            licence="MIT, Zalando SE",
            files=(
                PublicFile(
                    "train-images-idx3-ubyte",
                    47_040_016,
                    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                ),
                PublicFile(
                    "train-labels-idx1-ubyte",
                    60_008,
                    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                ),
                PublicFile(
                    "t10k-images-idx3-ubyte",
                    7_840_016,
                    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                ),
                PublicFile(
                    "t10k-labels-idx1-ubyte",
                    10_008,
                    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
                ),
            ),
            addresses=(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            ),
            debian_package="dataset-fashion-mnist",
        ),
    }
)


def cache_folder(name: str, cache: Path) -> Path:
    """The folder of the data set `name` in the user's cache folder."""
    return cache / "datasets" / name


def find_public(name: str, cache: Path | None) -> Path | None:
    """The folder on this machine that has all files of the data set `name`: in the user's cache, else the system's."""
    return next((folder for folder in _folders(name, cache) if not _missing(name, folder)), None)


def read_public(name: str, folder: Path | None, cache: Path | None) -> Parts:
    """The data set `name`, one of `PUBLIC`, from `folder`, or from where `find_public` finds it.

    Inputs are bytes (N, 1, height, width); targets are bytes (N,). Raises DataError for files that are missing, damaged
    or do not belong together; OSError for one that cannot be opened.
    """
    if folder is None:
        folder = find_public(name, cache)
        if folder is None:
            raise DataError(_advice(name, cache))
    missing = _missing(name, folder)
    if missing:
        what = f"has no {', no '.join(missing)} (plain or with .gz)" if folder.is_dir() else "is not a folder"
        raise DataError(f"{folder}, where {name} shall be read from, {what}")
    train_images, train_labels, test_images, test_labels = (
        _existing(folder, file.name) or Path() for file in PUBLIC[name].files
    )
    return Parts(
        train=_read(train_images, train_labels),
        evaluation=_read(test_images, test_labels),
        is_divided=True,
        num_classes=PUBLIC[name].num_classes,
    )


def _read(images_path: Path, labels_path: Path) -> Source:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise DataError(
            f"every image needs one label: {images_path} has {len(images)} images, "
            f"{labels_path} has {len(labels)} labels"
        )
    return Source(
        inputs=images[:, np.newaxis],
        targets=labels,
        input_file=str(images_path),
        target_file=str(labels_path),
        input_limit=255,
        converts_late=True,
    )


def _folders(name: str, cache: Path | None) -> list[Path]:
    folders = [] if cache is None else [cache_folder(name, cache)]
    return folders if PUBLIC[name].debian_package is None else [*folders, SYSTEM_FOLDER / name]


def _missing(name: str, folder: Path) -> list[str]:
    return [file.name for file in PUBLIC[name].files if _existing(folder, file.name) is None]


def _existing(folder: Path, name: str) -> Path | None:
    # Some copies write `train-images.idx3-ubyte`.
    spellings = (name, name.replace("-idx", ".idx"))
    paths = (folder / f"{spelling}{suffix}" for spelling in spellings for suffix in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _advice(name: str, cache: Path | None) -> str:
    looked = []
    for folder in _folders(name, cache):
        missing = _missing(name, folder)
        partly = 0 < len(missing) < len(PUBLIC[name].files)
        looked.append(f"{folder} ({'no ' + ', no '.join(missing) if partly else 'not there'})")
    ways = [
        f"download it: ddp-bp data fetch {name}",
        f"set `folder` to the folder of its four IDX files ({PUBLIC[name].files[0].name} and so on, plain or .gz)",
    ]
    package = PUBLIC[name].debian_package
    if package is not None:
        ways.insert(1, f"install Debian's package: apt-get install {package}")
    return f"{name} is not on this machine; looked in {' and '.join(looked) or 'no folder'}. " + "; or ".join(ways)
