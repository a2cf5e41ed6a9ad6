"""The checkpoints of one run: writing that survives a crash at any moment, listing, choosing and removing.

Each checkpoint is a folder `step-00000042`. Names that start with a dot are never finished checkpoints:

    .tmp-step-*      being written
    .old-step-*      a finished checkpoint that is being replaced; it counts until the new one has its name
    .trash-step-*    being removed

There must be one writer at a time; any number of processes may read. This module must not know what the tensors mean,
when a checkpoint is due, or which one a run resumes from.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from numpy.typing import NDArray

from ddp_bp.checkpoint.format import (
    MANIFEST_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    Manifest,
    encode_manifest,
    encode_tensors,
    weights_sha256,
)
from ddp_bp.checkpoint.read import Checkpoint, load_checkpoint, read_manifest, verify_checkpoint
from ddp_bp.checkpoint.storage import PosixStorage, Storage
from ddp_bp.errors import CheckpointError, DdpError, NewerFormatError

_TEMPORARY: Final = ".tmp-"
_REPLACED: Final = ".old-"
_TRASH: Final = ".trash-"
_STEP_NAME: Final = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Entry:
    """A checkpoint as a listing shows it. `problem` is None if its manifest is good and its files have the right size.

    Digests of tensors are not part of that; `CheckpointStore.verify` looks at them.
    """

    path: Path
    step: int
    manifest: Manifest | None
    problem: str | None
    size_bytes: int


class CheckpointStore:
    """The checkpoints in `folder`, which is made by the first `write`."""

    def __init__(self, folder: Path, storage: Storage | None = None) -> None:
        self.folder = folder
        self._storage = storage or PosixStorage()

    def write(
        self, manifest: Manifest, model: Mapping[str, NDArray[Any]], optimizer: Mapping[str, NDArray[Any]]
    ) -> Path:
        """Writes a checkpoint of `manifest.step` and returns its folder; on return it survives a power failure.

        A checkpoint of the same step is replaced, and is there until the new one is. The manifest's `files` and
        `manifest_sha256` are filled in, and `weights_sha256` too where it is empty.

        Raises CheckpointError if the tensors cannot be stored or do not have the manifest's `weights_sha256`, and
        DdpError if the disk refuses; then nothing that was there before is lost.
        """
        name = f"step-{manifest.step:08d}"
        contents = _contents(manifest, model, optimizer, str(self.folder / name))
        temporary, final = self.folder / (_TEMPORARY + name), self.folder / name
        try:
            self._storage.make_folder(self.folder)
            self._storage.sync_folder(self.folder.parent)
            if temporary.name in self._storage.list_folder(self.folder):
                self._storage.remove_tree(temporary)
            self._storage.make_folder(temporary)
            for file_name, content in contents.items():
                self._storage.write_file(temporary / file_name, content)
            self._storage.sync_folder(temporary)
            self._put_in_place(temporary, final)
        except OSError as error:
            # What cannot be removed on a failing disk is removed by the next `sweep`.
            with contextlib.suppress(OSError):
                self._storage.remove_tree(temporary)
            raise DdpError(
                f"the checkpoint of step {manifest.step} could not be written to {final}: {error}; "
                f"earlier checkpoints are as they were"
            ) from error
        return final

    def _put_in_place(self, temporary: Path, final: Path) -> None:
        replaced = self.folder / (_REPLACED + final.name)
        names = self._storage.list_folder(self.folder)
        if final.name in names:
            if replaced.name in names:
                self._storage.remove_tree(replaced)
            self._storage.rename(final, replaced)
        self._storage.rename(temporary, final)
        self._storage.sync_folder(self.folder)
        if final.name in names or replaced.name in names:
            # The new checkpoint is durable; a failure to remove the old one is no failure to write it.
            with contextlib.suppress(OSError):
                self._storage.remove_tree(replaced)

    def entries(self) -> list[Entry]:
        """All checkpoints, damaged ones included, newest first. Reads manifests and file sizes, no tensors.

        Raises CheckpointError if the folder cannot be read: that it holds none is then not known.
        """
        return [self._entry(step, path) for step, path in sorted(self._folders().items(), reverse=True)]

    def verify(self, path: Path) -> list[str]:
        """Every problem of the checkpoint in `path`, one line each; reads it whole."""
        return verify_checkpoint(path, self._storage)

    def load(self, path: Path) -> Checkpoint:
        """The checkpoint in `path`. Raises CheckpointError naming the file if anything is missing or damaged."""
        return load_checkpoint(path, self._storage)

    def latest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None. `warn` is called once for each newer one, with the reason.

        Raises NewerFormatError rather than go back behind a checkpoint of a later format.
        """
        for entry in self.entries():
            try:
                if entry.manifest is not None and entry.problem is not None:
                    raise CheckpointError(entry.problem)
                return self.load(entry.path)
            except NewerFormatError:
                raise
            except CheckpointError as error:
                warn(f"checkpoint of step {entry.step} is not used: {error}")
        return None

    def retain(self, keep: int, keep_best: bool, protect: Path | None = None) -> list[Path]:
        """Removes all but the last `keep` checkpoints and, with `keep_best`, the best one; returns what was removed.

        The checkpoint in `protect` stays in any case: the one just written need not be among the last, where a run went
        on from an older checkpoint than its newest.

        Best is the lowest evaluation loss, of the checkpoints whose very weights were evaluated (see `Manifest.extra`)
        if there are any; without an evaluation loss, it is the lowest training loss. Before anything
        is removed, the newest checkpoint that is whole in every byte is looked for; it is always kept, and without one
        nothing is removed. Damaged checkpoints are not counted; those older than a good one are removed.

        Raises CheckpointError for `keep` below 1 and DdpError if the disk refuses.
        """
        if keep < 1:
            raise CheckpointError(f"the number of checkpoints to keep must be at least 1, got {keep}")
        entries = self.entries()
        good = [entry for entry in entries if entry.problem is None]
        kept = {entry.step for entry in good[:keep]}
        if keep_best:
            kept |= _best_step(good)
        kept |= {entry.step for entry in entries if entry.path == protect}
        doomed = [entry for entry in entries if entry.step not in kept and good and entry.step < good[0].step]
        if not doomed:
            return []
        newest_whole = next((entry.step for entry in good if not self.verify(entry.path)), None)
        if newest_whole is None:
            return []
        removed = [entry.path for entry in doomed if entry.step != newest_whole]
        try:
            self._remove(removed)
        except OSError as error:
            raise DdpError(f"old checkpoints in {self.folder} could not be removed: {error}") from error
        return removed

    def sweep(self) -> list[Path]:
        """Removes what earlier crashes left unfinished, and returns it. To be called before the first `write`.

        A checkpoint that was being replaced gets its name back if the new one never got it. Raises DdpError if the disk
        refuses.
        """
        try:
            names = set(self._storage.list_folder(self.folder))
            stale = [name for name in names if name.startswith((_TEMPORARY, _TRASH))]
            for name in sorted(name for name in names if name.startswith(_REPLACED)):
                original = name.removeprefix(_REPLACED)
                if original in names:
                    stale.append(name)
                else:
                    # Not synced: after a power failure either name is as good as the other.
                    self._storage.rename(self.folder / name, self.folder / original)
            paths = [self.folder / name for name in sorted(stale)]
            for path in paths:
                self._storage.remove_tree(path)
        except OSError as error:
            raise DdpError(f"leftovers in {self.folder} could not be removed: {error}") from error
        return paths

    def _remove(self, paths: list[Path]) -> None:
        """Takes the names away first, so that a folder with a checkpoint's name is never half removed."""
        trash = [self.folder / (_TRASH + path.name.removeprefix(_REPLACED)) for path in paths]
        names = self._storage.list_folder(self.folder)
        for old, new in zip(paths, trash, strict=True):
            if new.name in names:
                self._storage.remove_tree(new)
            self._storage.rename(old, new)
        self._storage.sync_folder(self.folder)
        for path in trash:
            self._storage.remove_tree(path)

    def _folders(self) -> dict[int, Path]:
        """Folder of each step. A replaced one counts only where no other has its name."""
        try:
            names = self._storage.list_folder(self.folder)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoints in {self.folder} cannot be listed: {error.strerror or error}; "
                f"let this user read the folder, or look at its disk"
            ) from error
        found: dict[int, Path] = {}
        for name in names:
            match = _STEP_NAME.fullmatch(name.removeprefix(_REPLACED))
            if match and (not name.startswith(_REPLACED) or int(match[1]) not in found):
                found[int(match[1])] = self.folder / name
        return found

    def _entry(self, step: int, path: Path) -> Entry:
        size_bytes = 0
        try:
            manifest = read_manifest(path, self._storage)
            size_bytes += self._storage.size_bytes(path / MANIFEST_FILE)
            for name, record in manifest.files.items():
                found_bytes = self._storage.size_bytes(path / name)
                size_bytes += found_bytes
                if found_bytes != record.size_bytes:
                    problem = f"{path / name}: expected {record.size_bytes} bytes, got {found_bytes}"
                    return Entry(path, step, manifest, problem, size_bytes)
        except CheckpointError as error:
            return Entry(path, step, None, str(error), size_bytes)
        except OSError as error:
            return Entry(path, step, None, f"{path} cannot be read: {error}", size_bytes)
        if manifest.step != step:
            return Entry(path, step, manifest, f"{path} holds step {manifest.step}, not {step}", size_bytes)
        return Entry(path, step, manifest, None, size_bytes)


def _contents(
    manifest: Manifest, model: Mapping[str, NDArray[Any]], optimizer: Mapping[str, NDArray[Any]], called: str
) -> dict[str, bytes]:
    """The content of each file of a checkpoint, the manifest last."""
    got = weights_sha256(model, {*manifest.buffers, *manifest.tied})
    if manifest.weights_sha256 not in ("", got):
        raise CheckpointError(
            f"{called}: the weights to be written do not match their digest: expected SHA-256 "
            f"{manifest.weights_sha256}, got {got}; the state was changed on its way here, so nothing is written"
        )
    contents, files = {}, {}
    for name, tensors in ((MODEL_FILE, model), (OPTIMIZER_FILE, optimizer)):
        contents[name], files[name] = encode_tensors(tensors, f"{called}/{name}")
    contents[MANIFEST_FILE] = encode_manifest(msgspec.structs.replace(manifest, weights_sha256=got, files=files))
    return contents


def _best_step(good: list[Entry]) -> set[int]:
    """The step with the lowest loss, the latest of equals; empty if no loss is known.

    An evaluation loss may be that of earlier weights, so those that are not come first.
    """
    manifests = [entry.manifest for entry in good if entry.manifest is not None]
    of_evaluation = {one.step: one.eval_loss for one in manifests if one.eval_loss is not None}
    of_training = {one.step: one.train_loss for one in manifests if one.train_loss is not None}
    own = {one.step for one in manifests if one.extra.get("evaluated_at_step") == one.step}
    losses = {step: loss for step, loss in of_evaluation.items() if step in own} or of_evaluation or of_training
    return {min(losses, key=lambda step: (losses[step], -step))} if losses else set()
