from __future__ import annotations

import hashlib
import json
import platform
import re

import numpy as np
import pytest
from checkpoint_fakes import FOLDER, MemoryStorage, manifest, write
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_bp._version import __version__
from ddp_bp.checkpoint import CheckpointStore, weights_sha256
from ddp_bp.checkpoint.format import (
    FORMAT_VERSION,
    FileRecord,
    decode_manifest,
    decode_tensors,
    encode_manifest,
    encode_tensors,
)
from ddp_bp.errors import CheckpointError, NewerFormatError

DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint8", "bool"]


def signed(fields: dict[str, object]) -> bytes:
    """A manifest as another program would write it by the documented rule."""
    fields = {**fields, "manifest_sha256": "0" * 64}
    content = json.dumps(fields, indent=2, sort_keys=True).encode()
    digest = hashlib.sha256(content).hexdigest()
    return content.replace(b'"manifest_sha256": "' + b"0" * 64, b'"manifest_sha256": "' + digest.encode())


@pytest.fixture(scope="module")
def written() -> bytes:
    storage = MemoryStorage()
    return storage.read_file(write(CheckpointStore(FOLDER, storage), 7) / "manifest.json")


def test_weights_digest_is_the_documented_one() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    bias = np.array([1.5, -1])
    expected = hashlib.sha256(bias.astype("<f8").tobytes() + weight.astype("<f4").tobytes("C")).hexdigest()
    assert weights_sha256({"b": weight, "a": bias}) == expected
    assert weights_sha256({"b": np.asfortranarray(weight), "a": bias.astype(">f8")}) == expected
    assert weights_sha256({"a": bias, "b": weight, "c": bias}, leave_out=["c"]) == expected
    assert weights_sha256({"a": bias, "b": weight.T}) != expected
    assert weights_sha256({}) == hashlib.sha256(b"").hexdigest()


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3), st.sampled_from("<>"), st.booleans()
        ),
        max_size=4,
    ),
    st.integers(0, 2**32),
)
def test_any_tensors_survive_the_way_through_a_file(
    layouts: dict[str, tuple[str, list[int], str, bool]], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, (dtype, shape, byte_order, transposed) in layouts.items():
        values = generator.integers(0, 100, size=shape).astype(np.dtype(dtype).newbyteorder(byte_order))
        tensors[name] = values.T if transposed else values
    content, record = encode_tensors(tensors, "model")
    assert (record.size_bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    loaded = decode_tensors(content, record, "model")
    assert loaded.keys() == tensors.keys()
    for name, array in tensors.items():
        assert loaded[name].dtype == array.dtype.newbyteorder("=") and loaded[name].shape == array.shape
        np.testing.assert_array_equal(loaded[name], array)


def test_the_bytes_depend_on_values_only() -> None:
    first = {"a": np.ones((2, 3), dtype=np.float32), "b": np.zeros(2)}
    second = {"b": np.zeros(4)[::2], "a": np.ones((3, 2), dtype=np.float32).T}
    assert encode_tensors(first, "model") == encode_tensors(second, "model")


def test_a_dtype_that_cannot_be_stored_is_named() -> None:
    with pytest.raises(CheckpointError, match="model: tensor 'a' has dtype complex128"):
        encode_tensors({"a": np.ones(2, dtype=np.complex128)}, "model")
    with pytest.raises(CheckpointError, match="has dtype object"):
        encode_tensors({"a": np.array([None])}, "model")


def test_the_manifest_is_readable_sorted_json(written: bytes) -> None:
    fields = json.loads(written)
    assert written.decode().startswith("{\n  ") and list(fields) == sorted(fields)
    assert fields["format_version"] == FORMAT_VERSION == 1
    assert fields["versions"]["ddp_bp"] == __version__
    assert fields["versions"]["python"] == platform.python_version()
    assert fields["versions"]["numpy"] == np.__version__
    assert fields["created_utc"].endswith("+00:00")
    assert fields["files"]["model.safetensors"]["tensors"]["0.weight"] == {"dtype": "float32", "shape": [4, 3]}


def test_the_manifest_follows_its_documented_rule(written: bytes) -> None:
    blank = re.sub(rb'(?m)^  "manifest_sha256": "[0-9a-f]+"', b'  "manifest_sha256": "' + b"0" * 64 + b'"', written)
    assert hashlib.sha256(blank).hexdigest() == json.loads(written)["manifest_sha256"]
    assert decode_manifest(signed(json.loads(written)), "m").files == decode_manifest(written, "m").files


def test_fields_of_later_versions_are_ignored(written: bytes) -> None:
    fields = {**json.loads(written), "colour": "blue"}
    assert decode_manifest(signed(fields), "m").step == 7


def test_a_field_of_the_same_name_inside_extra_does_not_confuse_the_digest(written: bytes) -> None:
    nested = manifest(1, files=decode_manifest(written, "m").files, extra={"manifest_sha256": "0" * 64})
    decoded = decode_manifest(encode_manifest(nested), "m")
    assert decoded.extra == {"manifest_sha256": "0" * 64}


def test_a_later_format_is_refused_by_its_version(written: bytes) -> None:
    fields = {**json.loads(written), "format_version": 2, "step": "another meaning", "versions": {"ddp_bp": "7.8"}}
    with pytest.raises(NewerFormatError) as raised:
        decode_manifest(signed(fields), "m")
    assert str(raised.value) == (
        f"m has format version 2, written by ddp_bp 7.8; this is ddp_bp {__version__}, which reads up to version 1: "
        "install ddp_bp 7.8 or a later one, or name an older checkpoint with --resume"
    )
    with pytest.raises(NewerFormatError, match="m has format version 2"):
        decode_manifest(signed({**fields, "versions": ["another form"]}), "m")


def test_a_damaged_version_is_not_taken_for_a_later_one(written: bytes) -> None:
    damaged = written.replace(b'"format_version": 1', b'"format_version": 3')
    assert damaged != written
    with pytest.raises(CheckpointError, match="m is damaged or was edited"):
        decode_manifest(damaged, "m")
    with pytest.raises(CheckpointError, match="m is not a readable manifest: Expected `int` >= 1"):
        decode_manifest(signed({**json.loads(written), "format_version": 0}), "m")


def test_a_manifest_without_a_file_is_refused(written: bytes) -> None:
    fields = json.loads(written)
    del fields["files"]["optimizer.safetensors"]
    with pytest.raises(CheckpointError, match=r"m lists no file optimizer.safetensors"):
        decode_manifest(signed(fields), "m")


def test_an_edited_manifest_is_refused(written: bytes) -> None:
    edited = written.replace(b'"step": 7', b'"step": 8')
    assert edited != written
    with pytest.raises(CheckpointError, match="m is damaged or was edited: expected SHA-256"):
        decode_manifest(edited, "m")


@pytest.mark.parametrize("key", ["step", "seed", "manifest_sha256"])
def test_a_manifest_without_a_needed_field_is_refused(written: bytes, key: str) -> None:
    fields = json.loads(written)
    del fields[key]
    with pytest.raises(CheckpointError, match="m is"):
        decode_manifest(json.dumps(fields).encode(), "m")


@given(st.binary(max_size=200) | st.text(max_size=50).map(str.encode) | st.just(b"[" * 100_000))
def test_garbage_is_one_clear_error(content: bytes) -> None:
    with pytest.raises(CheckpointError):
        decode_manifest(content, "m")
    record = FileRecord(len(content), hashlib.sha256(content).hexdigest(), {})
    with pytest.raises(CheckpointError, match="f is not a readable safetensors file"):
        decode_tensors(content, record, "f")
