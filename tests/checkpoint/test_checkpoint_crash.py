"""After a crash or a power failure at any operation, what is listed as good is whole and nothing finished is lost."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_fakes import (
    FOLDER,
    Crash,
    FaultyStorage,
    MemoryStorage,
    PosixStorage,
    count_operations,
    model,
    write,
)

from ddp_bp.checkpoint import CheckpointStore
from ddp_bp.errors import DdpError

NEW_SEED = 99

Action = Callable[[CheckpointStore], object]

ACTIONS: dict[str, Action] = {
    "write": lambda store: write(store, 30),
    "replace": lambda store: write(store, 20, seed=NEW_SEED),
    "retain": lambda store: store.retain(keep=1, keep_best=False),
    "write and retain": lambda store: (write(store, 30), store.retain(keep=1, keep_best=False)),
}


def two_checkpoints() -> MemoryStorage:
    storage = MemoryStorage()
    store = CheckpointStore(FOLDER, storage)
    write(store, 10)
    write(store, 20)
    return storage


def no_warning(text: str) -> None:
    raise AssertionError(f"unexpected warning: {text}")


def assert_consistent(store: CheckpointStore, action: str) -> int:
    """Everything listed is whole, and the newest is one that may be expected. Returns its step."""
    for entry in store.entries():
        assert entry.problem is None
        assert store.verify(entry.path) == []
    latest = store.latest(no_warning)
    assert latest is not None
    step = latest.manifest.step
    assert step == 20 or (step == 30 and "write" in action)
    seeds = [step, NEW_SEED] if action == "replace" else [step]
    assert any(np.array_equal(latest.model["0.weight"], model(seed)["0.weight"]) for seed in seeds)
    return step


def outcomes(storage: MemoryStorage) -> list[MemoryStorage]:
    """Disks that may be found: nothing unsynced arrived, all of it did, and some mixtures."""
    picks: list[Callable[[int], int]] = [lambda count: 0, lambda count: count - 1]
    picks += [random.Random(seed).randrange for seed in range(6)]
    return [storage.power_failure(pick) for pick in picks]


@pytest.mark.parametrize("how", ["before", "half", "after"])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_power_failure_at_any_operation_loses_nothing_finished(action: str, how: str) -> None:
    num_operations = count_operations(ACTIONS[action], two_checkpoints())
    assert num_operations > 5
    for fail_at in range(num_operations):
        storage = two_checkpoints()
        with pytest.raises(Crash):
            ACTIONS[action](CheckpointStore(FOLDER, FaultyStorage(storage, fail_at, Crash(), how)))  # type: ignore[arg-type]
        for found in outcomes(storage):
            store = CheckpointStore(FOLDER, found)
            before = assert_consistent(store, action)
            store.sweep()
            assert assert_consistent(store, action) == before
            assert all(name.startswith("step-") for name in found.list_folder(FOLDER))
            write(store, 40)
            latest = store.latest(no_warning)
            assert latest is not None and latest.manifest.step == 40


@pytest.mark.parametrize("action", ACTIONS)
def test_a_power_failure_while_sweeping_loses_nothing_finished(action: str) -> None:
    for crash_at in range(count_operations(ACTIONS[action], two_checkpoints())):
        crashed = two_checkpoints()
        with pytest.raises(Crash):
            ACTIONS[action](CheckpointStore(FOLDER, FaultyStorage(crashed, crash_at, Crash(), "after")))  # type: ignore[arg-type]
        everything = [lambda count: count - 1]
        num_operations = count_operations(lambda store: store.sweep(), crashed.power_failure(everything[0]))
        for fail_at in range(num_operations):
            storage = crashed.power_failure(everything[0])
            with pytest.raises(Crash):
                CheckpointStore(FOLDER, FaultyStorage(storage, fail_at, Crash(), "after")).sweep()  # type: ignore[arg-type]
            for found in outcomes(storage):
                assert_consistent(CheckpointStore(FOLDER, found), action)


def test_a_checkpoint_survives_any_power_failure_once_write_has_returned() -> None:
    storage = two_checkpoints()
    store = CheckpointStore(FOLDER, storage)
    write(store, 30)
    write(store, 20, seed=NEW_SEED)
    for found in outcomes(storage):
        survivor = CheckpointStore(FOLDER, found)
        assert [entry.step for entry in survivor.entries()] == [30, 20, 10]
        assert survivor.latest(no_warning) is not None
        np.testing.assert_array_equal(
            survivor.load(survivor.entries()[1].path).model["0.weight"], model(NEW_SEED)["0.weight"]
        )


def test_the_first_checkpoint_makes_its_folder_durable() -> None:
    storage = MemoryStorage()
    write(CheckpointStore(FOLDER, storage), 1)
    assert [len(CheckpointStore(FOLDER, found).entries()) for found in outcomes(storage)] == [1] * len(
        outcomes(storage)
    )


@pytest.mark.parametrize("action", ["write", "replace"])
@pytest.mark.parametrize("how", ["before", "half"])
def test_a_full_disk_at_any_operation_is_one_error_and_loses_nothing(tmp_path: Path, action: str, how: str) -> None:
    folder = tmp_path / "count" / "checkpoints"
    folder.parent.mkdir()
    write(CheckpointStore(folder), 20)
    num_operations = count_operations(ACTIONS[action], PosixStorage(), folder)
    num_failures = 0
    for fail_at in range(num_operations):
        folder = tmp_path / str(fail_at) / "checkpoints"
        folder.parent.mkdir()
        write(CheckpointStore(folder), 20)
        full = OSError(errno.ENOSPC, "No space left on device")
        try:
            ACTIONS[action](CheckpointStore(folder, FaultyStorage(PosixStorage(), fail_at, full, how)))  # type: ignore[arg-type]
        except DdpError as error:
            num_failures += 1
            assert "No space left on device" in str(error) and str(folder) in str(error)
            assert error.__cause__ is full
        store = CheckpointStore(folder)
        assert_consistent(store, action)
        assert not list(folder.glob(".tmp-*"))
        store.sweep()
        assert_consistent(store, action)
        write(store, 40)
        assert store.entries()[0].step == 40
    # Removing what was replaced is the last operation, and its failure does not undo the write.
    assert num_failures == num_operations - (1 if action == "replace" else 0)
