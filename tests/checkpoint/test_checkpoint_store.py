from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from checkpoint_fakes import FOLDER, FaultyStorage, MemoryStorage, manifest, model, optimizer, write
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_bp.checkpoint import CheckpointStore, load_checkpoint, weights_sha256
from ddp_bp.checkpoint.format import FORMAT_VERSION, MANIFEST_FILE, MODEL_FILE, OPTIMIZER_FILE, encode_manifest
from ddp_bp.checkpoint.storage import PosixStorage
from ddp_bp.errors import CheckpointError, DdpError, NewerFormatError

FILES = (MANIFEST_FILE, MODEL_FILE, OPTIMIZER_FILE)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def steps(store: CheckpointStore) -> list[int]:
    return [entry.step for entry in store.entries()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def damage(path: Path, position: int = 100) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def _evaluated(at_step: int, loss: float | None) -> dict[str, Any]:
    return {"eval_loss": loss, "extra": {"evaluated_at_step": at_step}}


def test_what_is_written_is_read_back(store: CheckpointStore) -> None:
    path = write(store, 42, train_loss=0.5, extra={"note": "a"}, ledger_sha256="ab")
    assert path == store.folder / "step-00000042"
    assert names(path) == sorted(FILES)
    assert names(store.folder) == [path.name]
    loaded = store.load(path)
    assert (loaded.manifest.step, loaded.manifest.train_loss, loaded.manifest.extra) == (42, 0.5, {"note": "a"})
    assert loaded.manifest.weights_sha256 == weights_sha256(model(42))
    for expected, got in ((model(42), loaded.model), (optimizer(42), loaded.optimizer)):
        assert expected.keys() == got.keys()
        for name, array in expected.items():
            assert got[name].dtype == array.dtype and got[name].shape == array.shape
            np.testing.assert_array_equal(got[name], array)
    assert store.verify(path) == []
    entry = store.entries()[0]
    assert entry.problem is None and entry.manifest == loaded.manifest
    assert entry.size_bytes == sum((path / name).stat().st_size for name in FILES)


def test_an_empty_store_has_no_checkpoints(store: CheckpointStore) -> None:
    assert store.entries() == []
    assert store.latest(pytest.fail) is None
    assert store.sweep() == []
    assert store.retain(1, True) == []


def test_listing_is_newest_first_by_number(store: CheckpointStore) -> None:
    for step in (9, 123_456_789, 10, 0):
        write(store, step)
    (store.folder / "step-1").mkdir()
    (store.folder / "notes.txt").write_text("not a checkpoint")
    assert steps(store) == [123_456_789, 10, 9, 0]


def test_writing_a_step_again_replaces_it(store: CheckpointStore) -> None:
    write(store, 5, seed=1)
    path = write(store, 5, seed=2)
    np.testing.assert_array_equal(store.load(path).model["0.weight"], model(2)["0.weight"])
    assert names(store.folder) == [path.name]


def test_weights_that_do_not_match_their_digest_are_not_written(store: CheckpointStore) -> None:
    with pytest.raises(CheckpointError, match="nothing is written"):
        store.write(manifest(1, weights_sha256=weights_sha256(model(2))), model(1), {})
    assert store.entries() == []


def test_buffers_are_stored_but_are_not_weights(store: CheckpointStore) -> None:
    tensors = {**model(1), "1.running_mean": np.ones(3, dtype=np.float32)}
    path = store.write(
        manifest(1, weights_sha256=weights_sha256(model(1)), buffers=("1.running_mean",)), tensors, optimizer(1)
    )
    assert store.load(path).model.keys() == tensors.keys()


def test_latest_falls_back_past_damaged_checkpoints_with_a_warning_each(store: CheckpointStore) -> None:
    paths = {step: write(store, step) for step in (1, 2, 3, 4, 5)}
    damage(paths[5] / MODEL_FILE)
    (paths[4] / OPTIMIZER_FILE).unlink()
    (paths[3] / MANIFEST_FILE).unlink()
    warnings: list[str] = []
    latest = store.latest(warnings.append)
    assert latest is not None and latest.manifest.step == 2
    assert [f"checkpoint of step {step} is not used" in text for step, text in zip((5, 4, 3), warnings, strict=True)]
    assert "expected SHA-256" in warnings[0] and str(paths[5] / MODEL_FILE) in warnings[0]
    for path in paths.values():
        for file in path.iterdir():
            file.write_bytes(b"")
    assert store.latest(warnings.append) is None


def test_latest_does_not_go_back_behind_a_checkpoint_of_a_later_format(store: CheckpointStore) -> None:
    write(store, 1)
    newer = write(store, 2, format_version=FORMAT_VERSION + 1)
    damage(write(store, 3) / MODEL_FILE)
    warnings: list[str] = []
    with pytest.raises(NewerFormatError, match=f"{newer / MANIFEST_FILE} has format version {FORMAT_VERSION + 1}"):
        store.latest(warnings.append)
    assert ["step 3" in text for text in warnings] == [True]
    assert [entry.problem is None for entry in store.entries()] == [True, False, True]


def test_every_problem_is_listed(store: CheckpointStore) -> None:
    path = write(store, 1)
    damage(path / MODEL_FILE)
    (path / OPTIMIZER_FILE).write_bytes(b"short")
    problems = store.verify(path)
    size_bytes = store.entries()[0].manifest.files[OPTIMIZER_FILE].size_bytes  # type: ignore[union-attr]
    assert len(problems) == 2
    assert f"{path / MODEL_FILE}: expected SHA-256" in problems[0]
    assert problems[1] == f"{path / OPTIMIZER_FILE}: expected {size_bytes} bytes, got 5"
    assert store.entries()[0].problem == problems[1]


def test_a_checkpoint_under_the_name_of_another_step_is_a_problem(store: CheckpointStore) -> None:
    write(store, 1).rename(store.folder / "step-00000007")
    assert "holds step 1, not 7" in str(store.entries()[0].problem)
    assert store.latest(lambda text: None) is None


def test_tensors_that_the_manifest_does_not_list_are_a_problem(store: CheckpointStore) -> None:
    path = write(store, 1)
    good = store.load(path).manifest
    record = good.files[MODEL_FILE]
    renamed = {"other": record.tensors["0.bias"], "0.weight": record.tensors["0.weight"]}
    files = {**good.files, MODEL_FILE: msgspec.structs.replace(record, tensors=renamed)}
    (path / MANIFEST_FILE).write_bytes(encode_manifest(msgspec.structs.replace(good, files=files)))
    assert store.verify(path) == [
        f"{path / MODEL_FILE}: tensor '0.bias': the manifest has none, the file has float32 (4,)"
    ]


def test_weights_that_are_not_those_of_the_manifest_are_a_problem(store: CheckpointStore) -> None:
    path = write(store, 1)
    wrong = msgspec.structs.replace(store.load(path).manifest, weights_sha256="0" * 64)
    (path / MANIFEST_FILE).write_bytes(encode_manifest(wrong))
    assert [f"{path / MODEL_FILE}: expected weights with SHA-256 000" in text for text in store.verify(path)] == [True]
    with pytest.raises(CheckpointError, match="expected weights"):
        store.load(path)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("checkpoints/step-00000001/model.safetensors", "name its folder, {run}/checkpoints/step-00000001"),
        ("checkpoints", "for example {run}/checkpoints/step-00000002"),
        (".", "for example {run}/checkpoints/step-00000002"),
        ("elsewhere", "name a folder such as step-00000042"),
    ],
)
def test_a_path_that_is_no_checkpoint_says_what_to_name(
    store: CheckpointStore, tmp_path: Path, named: str, expected: str
) -> None:
    write(store, 1)
    write(store, 2)
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(tmp_path / named)
    assert f"{tmp_path / named} is not a checkpoint" in str(raised.value)
    assert expected.format(run=tmp_path) in str(raised.value)


@pytest.mark.parametrize(
    ("keep", "keep_best", "losses", "expected"),
    [
        (2, False, {}, [5, 4]),
        (9, True, {}, [5, 4, 3, 2, 1]),
        (1, True, {}, [5]),
        (1, True, {1: {"eval_loss": 0.2}, 2: {"eval_loss": 0.1}, 3: {"train_loss": 0.01}}, [5, 2]),
        (1, True, {1: {"train_loss": 0.2}, 2: {"train_loss": 0.3}}, [5, 1]),
        (2, True, {1: {"eval_loss": 0.5}, 3: {"eval_loss": 0.5}}, [5, 4, 3]),
        (1, True, {2: {"eval_loss": float("nan")}, 3: {"eval_loss": 4.0}}, [5, 3]),
        (1, False, {2: {"eval_loss": 0.0}}, [5]),
        # Steps 2 and 3 only carry on the loss of step 1, and 4 was evaluated itself.
        (1, True, {1: _evaluated(1, 0.1), 2: _evaluated(1, 0.1), 3: _evaluated(1, 0.1), 4: _evaluated(4, 0.3)}, [5, 1]),
        (1, True, {2: _evaluated(1, 0.1), 3: _evaluated(1, 0.1), 4: _evaluated(4, 0.3)}, [5, 4]),
        (1, True, {2: _evaluated(1, 0.1), 3: _evaluated(1, 0.2), 4: {"train_loss": 0.0}}, [5, 2]),
        (1, True, {2: _evaluated(2, None), 3: {"eval_loss": 0.2}}, [5, 3]),
    ],
)
def test_retention_keeps_the_last_and_the_best(
    store: CheckpointStore, keep: int, keep_best: bool, losses: dict[int, dict[str, Any]], expected: list[int]
) -> None:
    paths = {step: write(store, step, **losses.get(step, {})) for step in range(1, 6)}
    removed = store.retain(keep, keep_best)
    assert steps(store) == expected
    assert set(removed) == {path for step, path in paths.items() if step not in expected}
    assert len(names(store.folder)) == len(expected)
    assert store.retain(keep, keep_best) == []


def test_retention_never_removes_the_newest_whole_checkpoint(store: CheckpointStore) -> None:
    paths = {step: write(store, step) for step in range(1, 6)}
    for step in (3, 4, 5):
        damage(paths[step] / MODEL_FILE)  # of the right size, so that only a whole reading shows it
    store.retain(1, False)
    assert steps(store) == [5, 2]
    damage(paths[2] / MODEL_FILE)
    write(store, 1)
    damage(paths[1] / MODEL_FILE)
    assert store.retain(1, False) == []
    assert steps(store) == [5, 2, 1]


def test_retention_spares_the_one_to_protect(store: CheckpointStore) -> None:
    paths = {step: write(store, step) for step in range(1, 6)}
    assert store.retain(1, False, paths[2]) == [paths[4], paths[3], paths[1]]
    assert steps(store) == [5, 2]
    assert store.retain(1, False) == [paths[2]]


def test_retention_removes_damaged_checkpoints_older_than_a_good_one(store: CheckpointStore) -> None:
    paths = {step: write(store, step) for step in range(1, 6)}
    for step in (1, 3, 5):
        (paths[step] / MANIFEST_FILE).unlink()
    store.retain(2, False)
    assert steps(store) == [5, 4, 2]


def test_a_number_to_keep_below_one_is_refused(store: CheckpointStore) -> None:
    with pytest.raises(CheckpointError, match="at least 1, got 0"):
        store.retain(0, True)


def test_a_refusing_disk_is_one_error(store: CheckpointStore) -> None:
    write(store, 1)
    write(store, 2)

    class ReadOnly(PosixStorage):
        def rename(self, old: Path, new: Path) -> None:
            raise OSError(errno.EROFS, "Read-only file system", str(old))

        def remove_tree(self, path: Path) -> None:
            raise OSError(errno.EROFS, "Read-only file system", str(path))

    (store.folder / ".tmp-step-00000003").mkdir()
    refusing = CheckpointStore(store.folder, ReadOnly())
    with pytest.raises(DdpError, match=r"could not be removed.*Read-only"):
        refusing.retain(1, False)
    with pytest.raises(DdpError, match=r"could not be removed.*Read-only"):
        refusing.sweep()
    assert steps(store) == [2, 1]


def test_an_unreadable_file_is_a_problem_of_that_checkpoint(store: CheckpointStore) -> None:
    path = write(store, 1)
    for name in FILES:
        store = CheckpointStore(path.parent)
        content = (path / name).read_bytes()
        (path / name).unlink()
        (path / name).mkdir()
        assert [f"{path / name} cannot be read: Is a directory" in text for text in store.verify(path)] == [True]
        (path / name).rmdir()
        (path / name).write_bytes(content)
    failing = FaultyStorage(PosixStorage(), 2, OSError(errno.EIO, "Input/output error"))
    assert "Input/output error" in str(CheckpointStore(path.parent, failing).entries()[0].problem)  # type: ignore[arg-type]


def test_sweeping_removes_leftovers_and_gives_a_replaced_checkpoint_its_name_back(store: CheckpointStore) -> None:
    for step in (1, 2, 3):
        write(store, step)
    folder = store.folder
    (folder / "step-00000003").rename(folder / ".old-step-00000003")
    (folder / "step-00000002").rename(folder / ".trash-step-00000002")
    (folder / ".old-step-00000001").mkdir()
    (folder / ".tmp-step-00000004").mkdir()
    assert steps(store) == [3, 1]
    swept = store.sweep()
    assert [path.name for path in swept] == [".old-step-00000001", ".tmp-step-00000004", ".trash-step-00000002"]
    assert names(folder) == ["step-00000001", "step-00000003"]
    assert store.verify(folder / "step-00000003") == []


def test_leftovers_do_not_stand_in_the_way(store: CheckpointStore) -> None:
    write(store, 1)
    write(store, 2)
    for name in (".tmp-step-00000002", ".old-step-00000002", ".trash-step-00000001"):
        (store.folder / name).mkdir()
        (store.folder / name / MODEL_FILE).write_text("half written")
    write(store, 2, seed=8)
    store.retain(1, False)
    assert names(store.folder) == ["step-00000002"]
    assert store.verify(store.folder / "step-00000002") == []


def test_files_and_folders_are_synced_before_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def recorded(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tmp_path).as_posix())

    monkeypatch.setattr(os, "fsync", recorded)
    write(CheckpointStore(tmp_path / "checkpoints"), 1)
    temporary = "checkpoints/.tmp-step-00000001"
    assert synced == [
        ".",
        *(f"{temporary}/{name}" for name in (MODEL_FILE, OPTIMIZER_FILE, MANIFEST_FILE)),
        temporary,
        "checkpoints",
    ]


def test_a_failed_sync_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error") as raised:
        PosixStorage().write_file(tmp_path / "file", b"content")
    assert raised.value.filename == str(tmp_path / "file")


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    storage = MemoryStorage()
    path = write(CheckpointStore(FOLDER, storage), 7)
    return {name: storage.read_file(path / name) for name in FILES}


def assert_found(whole: dict[str, bytes], name: str, content: bytes) -> None:
    storage = MemoryStorage()
    store = CheckpointStore(FOLDER, storage)
    write(store, 3)
    path = write(store, 7)
    for file, original in whole.items():
        storage.overwrite(path / file, original)
    assert store.verify(path) == []
    storage.overwrite(path / name, content)
    problems = store.verify(path)
    assert problems and all(str(path / name) in problem for problem in problems)
    with pytest.raises(CheckpointError) as raised:
        store.load(path)
    assert str(raised.value) == problems[0]
    warnings: list[str] = []
    latest = store.latest(warnings.append)
    assert latest is not None and latest.manifest.step == 3 and len(warnings) == 1


@settings(max_examples=150)
@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(whole: dict[str, bytes], name: str, where: float, bit: int) -> None:
    content = bytearray(whole[name])
    content[int(where * len(content))] ^= 1 << bit
    assert_found(whole, name, bytes(content))


@settings(max_examples=50)
@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True))
def test_any_truncated_file_is_found(whole: dict[str, bytes], name: str, where: float) -> None:
    assert_found(whole, name, whole[name][: int(where * len(whole[name]))])


def test_a_folder_that_cannot_be_read_is_named_and_not_taken_for_an_empty_one() -> None:
    storage = MemoryStorage()
    store = CheckpointStore(FOLDER, storage)
    path = write(store, 1)

    def refuse(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    storage.list_folder = refuse  # type: ignore[method-assign]
    for look in (store.entries, lambda: store.latest(print), lambda: store.retain(1, keep_best=False)):
        with pytest.raises(CheckpointError, match=f"{FOLDER} cannot be listed: Permission denied"):
            look()
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        load_checkpoint(path.parent, storage)
