"""The run directory: what a run was started with, and where it can go on from.

`resolve` and `select_checkpoint` only look, so that everything is known to be right before `create` writes. The
coordinator writes checkpoints, ledger, metrics and summary there; this module knows only what is needed to start.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ddp_bp.checkpoint import Checkpoint, CheckpointStore, load_checkpoint
from ddp_bp.errors import CheckpointError, InputError, RecipeError
from ddp_bp.recipes.load import decode, encode
from ddp_bp.recipes.schema import Recipe, differences, identity, resolve
from ddp_bp.worker.assemble import Job, versions
from ddp_bp.worker.blas import blas_in_use

RECIPE_FILE = "recipe.json"
ENVIRONMENT_FILE = "environment.json"
SUMMARY_FILE = "summary.json"
LEDGER_FILE = "ledger.jsonl"
LAUNCHER_FILE = "launcher.lock"
CHECKPOINT_FOLDER = "checkpoints"


class RunDirectory:
    """One run directory, which may not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = CheckpointStore(path / CHECKPOINT_FOLDER)

    @property
    def is_started(self) -> bool:
        """Whether a run has been started in it."""
        return (self.path / RECIPE_FILE).exists()

    def resolve(self, recipe: Recipe, world_size: int) -> Recipe:
        """`recipe` with what the first start fixes: its own values, else those of the run already here, else defaults.

        Raises:
            InputError: the path is something else than a run directory or an empty folder.
            RecipeError: the run that was started here has another recipe.
        """
        source = self.path / RECIPE_FILE
        with self._usable():
            if not self.is_started:
                if self.path.exists() and (not self.path.is_dir() or self._holds_anything()):
                    raise InputError(
                        f"run directory {self.path}: expected an empty folder, a new one, or one of an earlier run; "
                        f"this one has no {RECIPE_FILE}"
                    )
                return resolve(recipe, world_size, None)
            stored = decode(source.read_bytes(), str(source))
        resolved = resolve(recipe, world_size, stored)
        changed = differences(stored, resolved)
        if changed:
            raise RecipeError(
                f"run directory {self.path}",
                [
                    *changed,
                    "these keys would make it another run: give another --run-dir, or the recipe of the first start",
                ],
            )
        return resolved

    def _holds_anything(self) -> bool:
        """But for the first files of a start, which may have been killed in that moment."""
        begun = {LAUNCHER_FILE, _temporary(self.path / RECIPE_FILE).name}
        return any(entry.name not in begun for entry in self.path.iterdir())

    def select_checkpoint(self, resume: str, warn: Callable[[str], None]) -> Checkpoint | None:
        """The verified checkpoint to resume from, or None to start at the beginning.

        Args:
            resume: `auto` (the newest valid one here, if any), `never`, or the folder of a checkpoint.
            warn: is told of every damaged checkpoint that `auto` passes over.

        Raises:
            CheckpointError: the named checkpoint is missing or damaged; or `never` would overwrite a run.
        """
        if resume == "auto":
            return self.store.latest(warn)
        if resume == "never":
            if self.is_started and self.store.entries():
                raise CheckpointError(
                    f"--resume never: {self.path} holds checkpoints of an earlier start; "
                    "give another --run-dir, or --resume auto to go on from them"
                )
            return None
        return load_checkpoint(Path(resume))

    def check_newest(self, checkpoint: Checkpoint) -> None:
        """Raise CheckpointError if this directory has newer checkpoints than the one that a user has named.

        The ledger would be cut where the named one ends, and the next `auto` go on from the newest, beyond that end.
        """
        newer = [entry for entry in self.store.entries() if entry.step > checkpoint.manifest.step]
        whole = [entry.path.name for entry in newer if entry.problem is None and not self.store.verify(entry.path)]
        if whole:
            raise CheckpointError(
                f"--resume {checkpoint.path}: {self.path} has newer checkpoints ({', '.join(whole)}), from which the "
                f"next start would go on; move them out of {self.store.folder}, or give another --run-dir"
            )

    def finished_summary(self, recipe: Recipe, total_steps: int) -> dict[str, Any] | None:
        """The summary, if the run here has been trained to `total_steps`, and its sample is what `recipe` asks for."""
        try:
            summary = json.loads((self.path / SUMMARY_FILE).read_bytes())
            stored = decode((self.path / RECIPE_FILE).read_bytes(), RECIPE_FILE)
        except (OSError, ValueError, RecipeError):
            return None
        done = isinstance(summary, dict) and summary.get("steps") == total_steps
        return summary if done and stored.sample == recipe.sample else None

    def check_free(self) -> None:
        """Raise InputError while a coordinator writes to this directory: it holds a lock on the ledger."""
        with self._usable(), contextlib.suppress(FileNotFoundError), (self.path / LEDGER_FILE).open("rb") as ledger:
            try:
                fcntl.flock(ledger, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"run directory {self.path}: a job is running in it; see `ddp-bp status {self.path}`, "
                    "or give another --run-dir"
                ) from None

    def create(self, recipe: Recipe, environment: dict[str, Any]) -> None:
        """Make the folder and write the resolved recipe and the environment of this start.

        Raises InputError if the disk refuses; those of an earlier start are then as they were.
        """
        with self._usable():
            self.path.mkdir(parents=True, exist_ok=True)
            # First, since it makes the folder a run directory; until then the next start may take it for an empty one.
            _replace(self.path / RECIPE_FILE, encode(recipe))
            (self.path / CHECKPOINT_FOLDER).mkdir(exist_ok=True)
            _replace(self.path / ENVIRONMENT_FILE, (json.dumps(environment, indent=2) + "\n").encode())

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"run directory {self.path} cannot be used: {error.filename or self.path}: {error.strerror}; "
                "give another --run-dir"
            ) from error


def _replace(path: Path, content: bytes) -> None:
    """Give a file this content at once: it never has a part of it, not even if the disk is full. Raises OSError."""
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _temporary(path: Path) -> Path:
    return path.with_name(f".tmp-{path.name}")


def check_checkpoint(checkpoint: Checkpoint, job: Job, warn: Callable[[str], None]) -> None:
    """Refuse to go on from a checkpoint if that would not be the run of `job`.

    `warn` is told of library versions that differ, since the bits of further steps depend on them.

    Raises:
        CheckpointError: it was written by another recipe or on other data, or it lies beyond the job's last step.
    """
    manifest = checkpoint.manifest
    for what, got, expected, advice in (
        ("the seed", manifest.seed, job.plan.seed, "set train.seed to that"),
        ("a number of shards of", manifest.shards, job.plan.num_shards, "set train.shards to that"),
        ("the recipe", manifest.extra.get("recipe"), identity(job.recipe), "use the recipe of its run"),
        ("the data", manifest.extra.get("data"), job.data_digests, "the data files have changed since it was written"),
    ):
        if got != expected:
            raise CheckpointError(
                f"checkpoint {checkpoint.path}: expected {what} {expected}, got {got}; {advice}, "
                "or start anew with another --run-dir"
            )
    if manifest.step > job.total_steps:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: it is at step {manifest.step}, but the recipe ends at step "
            f"{job.total_steps}; raise train.epochs or train.max_steps, or resume from an earlier checkpoint"
        )
    for name, version in versions().items():
        written = manifest.versions.get(name, version)
        if written != version:
            warn(f"{checkpoint.path} was written with {name} {written}, this is {version}: bits may differ")


def recipe_sha256(recipe: Recipe) -> str:
    """Digest of a resolved recipe, for manifests."""
    return hashlib.sha256(encode(recipe)).hexdigest()


def describe_environment(**more: Any) -> dict[str, Any]:
    """What computes here: versions, processor, BLAS; `more` is added as it is."""
    return {
        **versions(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "blas_threads": blas_in_use().num_threads,
        "executable": sys.executable,
        **more,
    }
