"""A disk that forgets what was not synced, and storage that fails on demand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddp_bp.checkpoint import CheckpointStore, Manifest
from ddp_bp.checkpoint.storage import PosixStorage, Storage

ROOT = Path("/run")
FOLDER = ROOT / "checkpoints"


class Crash(BaseException):
    """The process is dead. Not an Exception, because nothing of the program may run after it."""


def manifest(step: int, **changes: Any) -> Manifest:
    return Manifest(step=step, epoch=0, step_in_epoch=step, samples=0, seed=1, shards=2, world_size=1, **changes)


def model(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "0.weight": generator.normal(size=(4, 3)).astype(np.float32),
        "0.bias": generator.normal(size=4).astype(np.float32),
    }


def optimizer(seed: int) -> dict[str, np.ndarray]:
    return {"0.weight.exp_avg": model(seed + 1)["0.weight"], "step": np.array(seed)}


def write(store: CheckpointStore, step: int, seed: int | None = None, **changes: Any) -> Path:
    seed = step if seed is None else seed
    return store.write(manifest(step, **changes), model(seed), optimizer(seed))


class Folder:
    """Each change of its names is a new entry of `history`; a sync forgets all but the last.

    After a power failure any entry of the history may be what is on the disk: file systems bring the changes of one
    folder to the disk in order, but when they please.
    """

    def __init__(self) -> None:
        self.history: list[dict[str, Folder | bytes]] = [{}]

    @property
    def names(self) -> dict[str, Folder | bytes]:
        return self.history[-1]

    def change(self, **changes: Folder | bytes | None) -> None:
        after = {**self.names, **changes}
        self.history.append({name: node for name, node in after.items() if node is not None})

    def after_power_failure(self, pick: Callable[[int], int]) -> Folder:
        survivor = Folder()
        names = self.history[pick(len(self.history))]
        survivor.history = [
            {name: node.after_power_failure(pick) if isinstance(node, Folder) else node for name, node in names.items()}
        ]
        return survivor


class MemoryStorage:
    """`Storage` in memory. `power_failure` gives a disk as it may be found afterwards."""

    def __init__(self, root: Folder | None = None) -> None:
        self.root = root or Folder()

    def power_failure(self, pick: Callable[[int], int]) -> MemoryStorage:
        return MemoryStorage(self.root.after_power_failure(pick))

    def make_folder(self, path: Path) -> None:
        here = self.root
        for part in path.relative_to(ROOT).parts:
            if part not in here.names:
                here.change(**{part: Folder()})
            below = here.names[part]
            assert isinstance(below, Folder)
            here = below

    def write_file(self, path: Path, content: bytes) -> None:
        folder = self._folder(path.parent)
        assert path.name not in folder.names
        folder.change(**{path.name: content})

    def sync_folder(self, path: Path) -> None:
        folder = self._folder(path)
        del folder.history[:-1]

    def rename(self, old: Path, new: Path) -> None:
        folder = self._folder(old.parent)
        assert old.parent == new.parent and new.name not in folder.names
        folder.change(**{old.name: None, new.name: folder.names[old.name]})

    def remove_tree(self, path: Path) -> None:
        folder = self._folder(path)
        for name in list(folder.names):
            folder.change(**{name: None})
        self._folder(path.parent).change(**{path.name: None})

    def list_folder(self, path: Path) -> list[str]:
        try:
            return sorted(self._folder(path).names)
        except FileNotFoundError:
            return []

    def size_bytes(self, path: Path) -> int:
        return len(self.read_file(path))

    def read_file(self, path: Path) -> bytes:
        content = self._folder(path.parent).names.get(path.name)
        if not isinstance(content, bytes):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return content

    def overwrite(self, path: Path, content: bytes) -> None:
        self._folder(path.parent).names[path.name] = content

    def _folder(self, path: Path) -> Folder:
        here = self.root
        for part in path.relative_to(ROOT).parts:
            below = here.names.get(part)
            if not isinstance(below, Folder):
                raise FileNotFoundError(2, "No such file or directory", str(path))
            here = below
        return here


class FaultyStorage:
    """Passes operations on to `inner` and lets operation number `fail_at` fail with `fault`.

    how: "before" (the operation has no effect), "half" (half of a file is written) or "after" (it has its
    whole effect).
    Once the fault was a Crash, every further operation crashes too.
    """

    def __init__(self, inner: Storage, fail_at: int, fault: BaseException, how: str = "before") -> None:
        self.inner = inner
        self.fail_at = fail_at
        self.fault = fault
        self.how = how
        self.num_operations = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self.inner, name)

        def faulty(*arguments: Any) -> Any:
            index = self.num_operations
            self.num_operations += 1
            if index == self.fail_at or (index > self.fail_at and isinstance(self.fault, Crash)):
                if index == self.fail_at and self.how == "half" and name == "write_file":
                    path, content = arguments
                    operation(path, content[: len(content) // 2])
                elif index == self.fail_at and self.how == "after":
                    operation(*arguments)
                raise self.fault
            return operation(*arguments)

        return faulty


def count_operations(action: Callable[[CheckpointStore], object], storage: Storage, folder: Path = FOLDER) -> int:
    counting = FaultyStorage(storage, fail_at=10**9, fault=Crash())
    action(CheckpointStore(folder, counting))  # type: ignore[arg-type]
    return counting.num_operations


__all__ = [
    "FOLDER",
    "ROOT",
    "Crash",
    "FaultyStorage",
    "MemoryStorage",
    "PosixStorage",
    "count_operations",
    "manifest",
    "model",
    "optimizer",
    "write",
]
