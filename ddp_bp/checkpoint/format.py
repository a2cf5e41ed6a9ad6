"""What a checkpoint consists of: its manifest, its digests, and the bytes of its files.

A checkpoint is a folder with `model.safetensors`, `optimizer.safetensors` and `manifest.json`. The manifest holds the
SHA-256 of the other two files and, last, of itself, so that a changed bit anywhere is found.

This module only turns values into bytes and back. It must not touch a disk, nor know what the tensors mean.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from ddp_bp._version import __version__
from ddp_bp.errors import CheckpointError, NewerFormatError

# Raised when readers of the version before would misunderstand what is written; fields that they may ignore, or that
# have a default, need no new one. `decode_manifest` is then where older manifests are brought into the new form, and
# `read.load_checkpoint` where tensors are; a run of the last release with the older version stays in the tests.
FORMAT_VERSION: Final = 1
MANIFEST_FILE: Final = "manifest.json"
MODEL_FILE: Final = "model.safetensors"
OPTIMIZER_FILE: Final = "optimizer.safetensors"
TENSOR_FILES: Final = (MODEL_FILE, OPTIMIZER_FILE)

_DTYPES: Final = frozenset(
    {"float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"}
)
_NO_DIGEST: Final = "0" * 64
# Two spaces: the manifest's own field, not one of that name inside another.
_OWN_DIGEST: Final = re.compile(rb'^  "manifest_sha256": "[0-9a-f]{64}"', re.MULTILINE)


def library_versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that a checkpoint's bits may depend on."""
    return {
        "python": platform.python_version(),
        "ddp_bp": __version__,
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
    }


class TensorRecord(msgspec.Struct, frozen=True):
    """dtype (NumPy's name) and shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]


class FileRecord(msgspec.Struct, frozen=True):
    """Size, SHA-256 (hex) and tensors of one file of a checkpoint."""

    size_bytes: int
    sha256: str
    tensors: dict[str, TensorRecord]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a checkpoint but its tensors. Unknown fields, of later versions, are ignored when read.

    step: number of committed steps; the next step to train is number `step`, counted from 0.
    epoch, step_in_epoch: position of that next step, both counted from 0.
    samples: number of samples trained on so far, over all epochs.
    seed, shards: as in the recipe; they fix which samples come next.
    recipe_sha256: digest of the resolved recipe; empty if there is none.
    weights_sha256: see the function of that name; left empty it is filled in when the checkpoint is written, and
        otherwise the tensors to be written must have this digest.
    buffers: names of the tensors of the model that are not parameters, and so not part of `weights_sha256`.
    tied: further names of parameters, each with the one under which it is part of `weights_sha256`.
    ledger_sha256: head of the ledger's hash chain after `step` steps; empty if there is no ledger.
    train_loss, eval_loss, eval_accuracy: the latest known, else None.
    world_size: number of ranks that made the checkpoint. Any number may resume it.
    created_utc: ISO 8601, with seconds. versions: of Python and the libraries.
    extra: for the caller's own use (JSON). Only "evaluated_at_step" has a meaning here: the step whose weights have
        `eval_loss`, which is older than `step` if these weights were not evaluated.
    files, manifest_sha256: filled in when the checkpoint is written.
    """

    step: int
    epoch: int
    step_in_epoch: int
    samples: int
    seed: int
    shards: int
    world_size: int
    recipe_sha256: str = ""
    weights_sha256: str = ""
    buffers: tuple[str, ...] = ()
    tied: dict[str, str] = {}
    ledger_sha256: str = ""
    train_loss: float | None = None
    eval_loss: float | None = None
    eval_accuracy: float | None = None
    created_utc: str = msgspec.field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    versions: dict[str, str] = msgspec.field(default_factory=library_versions)
    extra: dict[str, Any] = {}
    files: dict[str, FileRecord] = {}
    format_version: int = FORMAT_VERSION
    manifest_sha256: str = _NO_DIGEST


def weights_sha256(tensors: Mapping[str, NDArray[Any]], leave_out: Collection[str] = ()) -> str:
    """SHA-256, in hex, over the tensors in sorted-name order, little-endian, C order, concatenated.

    Names, shapes and dtypes are not part of it. Tensors named in `leave_out` are skipped.
    """
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        if name not in leave_out:
            sha256.update(_plain(tensors[name]).reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()


def encode_tensors(tensors: Mapping[str, NDArray[Any]], called: str) -> tuple[bytes, FileRecord]:
    """The bytes of a safetensors file and its record. They depend on nothing but names, dtypes, shapes and values.

    `called` is the file's name in messages. Raises CheckpointError for a dtype that such a file cannot hold.
    """
    plain = {}
    for name, array in tensors.items():
        if array.dtype.name not in _DTYPES:
            raise CheckpointError(
                f"{called}: tensor {name!r} has dtype {array.dtype}, which a safetensors file cannot hold; "
                f"convert it to one of {', '.join(sorted(_DTYPES))}"
            )
        plain[name] = _plain(array)
    # The metadata that Hugging Face's readers ask for: "pt" promises PyTorch's names, shapes and orientation.
    content = safetensors.numpy.save(plain, metadata={"format": "pt"})
    return content, FileRecord(len(content), hashlib.sha256(content).hexdigest(), _records(plain))


def decode_tensors(content: bytes, record: FileRecord, called: str) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file, which must be the file of `record`. The arrays may be read-only.

    Raises CheckpointError, naming the file as `called`, when size, digest or tensors differ.
    """
    problem = _difference(content, record)
    if problem is not None:
        raise CheckpointError(f"{called}: {problem}")
    try:
        tensors: dict[str, NDArray[Any]] = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{called} is not a readable safetensors file: {error}") from error
    found = _records(tensors)
    for name in sorted(found.keys() | record.tensors.keys()):
        if found.get(name) != record.tensors.get(name):
            raise CheckpointError(
                f"{called}: tensor {name!r}: the manifest has {_show(record.tensors.get(name))}, "
                f"the file has {_show(found.get(name))}"
            )
    return tensors


def encode_manifest(manifest: Manifest) -> bytes:
    """JSON, indented, keys sorted, with the digest of itself filled in.

    That digest is taken over the very bytes returned, with 64 zeros in the place of the digest.
    """
    unsigned = msgspec.structs.replace(manifest, manifest_sha256=_NO_DIGEST)
    content = msgspec.json.format(msgspec.json.encode(unsigned, order="sorted"), indent=2) + b"\n"
    return _with_own_digest(content, hashlib.sha256(content).hexdigest())


def decode_manifest(content: bytes, called: str) -> Manifest:
    """The manifest in `content`; `called` is the file's name in messages.

    Raises CheckpointError for content that is damaged or edited by hand, and NewerFormatError for a later format.
    """
    try:
        seal = msgspec.json.decode(content, type=_Seal)
        got = hashlib.sha256(_with_own_digest(content, _NO_DIGEST)).hexdigest()
        if got != seal.manifest_sha256:
            raise CheckpointError(
                f"{called} is damaged or was edited: expected SHA-256 {seal.manifest_sha256}, got {got}"
            )
        if seal.format_version > FORMAT_VERSION:
            writer = seal.versions.get("ddp_bp", "?") if isinstance(seal.versions, dict) else "?"
            raise NewerFormatError(
                f"{called} has format version {seal.format_version}, written by ddp_bp {writer}; this is ddp_bp "
                f"{__version__}, which reads up to version {FORMAT_VERSION}: install ddp_bp {writer} or a later one, "
                "or name an older checkpoint with --resume"
            )
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{called} is not a readable manifest: {error}") from error
    missing = [name for name in TENSOR_FILES if name not in manifest.files]
    if missing:
        raise CheckpointError(f"{called} lists no file {' and no file '.join(missing)}")
    return manifest


class _Seal(msgspec.Struct):
    """What manifests of all formats have, with the digest by the same rule, so that a later one is known from a damaged
    one."""

    format_version: Annotated[int, msgspec.Meta(ge=1)]
    manifest_sha256: str
    versions: Any = None


def _with_own_digest(content: bytes, digest: str) -> bytes:
    return _OWN_DIGEST.sub(b'  "manifest_sha256": "' + digest.encode() + b'"', content)


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """The same values, C-contiguous and little-endian. Unlike `ascontiguousarray`, this leaves 0 axes as 0 axes."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _records(tensors: Mapping[str, NDArray[Any]]) -> dict[str, TensorRecord]:
    return {name: TensorRecord(array.dtype.name, array.shape) for name, array in tensors.items()}


def _difference(content: bytes, record: FileRecord) -> str | None:
    if len(content) != record.size_bytes:
        return f"expected {record.size_bytes} bytes, got {len(content)}"
    got = hashlib.sha256(content).hexdigest()
    if got != record.sha256:
        return f"expected SHA-256 {record.sha256}, got {got}"
    return None


def _show(record: TensorRecord | None) -> str:
    return "none" if record is None else f"{record.dtype} {record.shape}"
