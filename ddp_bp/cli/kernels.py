"""The BLAS kernels of this process: chosen before anything is computed, by starting again with them if need be.

A BLAS chooses its kernels when it is loaded, by the environment of its process. So a command that finds itself with
others than it should have replaces itself by one with OPENBLAS_CORETYPE set, once, and before MPI is initialised.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ddp_bp.checkpoint.read import read_manifest
from ddp_bp.checkpoint.storage import PosixStorage
from ddp_bp.cli.environment import (
    NAMED_KERNELS,
    kernels_asked_for,
    kernels_may_change,
    launched_ranks,
    restart_with_kernels,
    user_cache,
)
from ddp_bp.cli.kernel_choice import OWN_CHOICE, Choice, fastest_kernels, remembered
from ddp_bp.cli.processor import this_processor
from ddp_bp.errors import DdpError, RecipeError
from ddp_bp.recipes import load_recipe
from ddp_bp.worker.blas import OPENBLAS, Blas, blas_in_use, recorded_kernels
from ddp_bp.worker.rundir import RunDirectory


@dataclass(frozen=True)
class Kernels:
    """What this process computes with.

    asked_for: the value of OPENBLAS_CORETYPE that all ranks are to have, and why; None where there is no OpenBLAS.
    problem: why the recipe cannot have the kernels that it names.
    may_change: whether nobody has named them, so that hosts which have others may agree on some.
    """

    blas: Blas
    asked_for: str | None = None
    why: str = ""
    problem: RecipeError | None = None
    may_change: bool = False

    def check(self) -> None:
        """Raise RecipeError if the recipe names kernels that cannot be had here."""
        if self.problem is not None:
            raise self.problem

    @property
    def warning(self) -> str | None:
        """What to tell the user if OpenBLAS does not do what it was asked for."""
        if self.asked_for is None or self.asked_for.casefold() == self.blas.kernels.casefold():
            return None
        return (
            f"{self.asked_for} kernels were asked for ({self.why}), but this OpenBLAS has none of that name "
            f"and computes with {self.blas.kernels}"
        )

    def line(self) -> str:
        """One line for people."""
        blas, threads = self.blas, f"{self.blas.num_threads} thread{'s' * (self.blas.num_threads != 1)} per rank"
        if self.asked_for is None:
            return f"BLAS: {blas}, {threads}"
        return f"BLAS: {blas.library} {blas.version}, {blas.kernels} kernels ({self.why}), {threads}"


def settle_kernels(
    recipe: str | None, overrides: tuple[str, ...] = (), run_dir: Path | None = None, resume: str = "never"
) -> Kernels:
    """See to it that this process computes with the right kernels. It may not return: then the command starts again.

    What counts is, in this order: OPENBLAS_CORETYPE in the environment, `blas.kernels` in the recipe, the kernels of
    the checkpoint to resume from if this processor can execute them, and what is fastest here. What else is wrong with
    recipe or checkpoint is left to be found by those who use them.
    """
    blas, asked = blas_in_use(), kernels_asked_for()
    # One that was built for a single processor says no kernel family, and takes no orders.
    is_openblas = blas.library == OPENBLAS and blas.kernels != ""
    if asked is not None:
        return Kernels(blas, *asked, may_change=kernels_may_change()) if is_openblas else Kernels(blas)
    try:
        named = "auto" if recipe is None else load_recipe(recipe, overrides)[0].blas.kernels
    except RecipeError:
        named = "auto"
    if named != "auto" and (problem := _problem(named, blas)) is not None:
        return Kernels(blas, problem=RecipeError(f"recipe {recipe}", [f"blas.kernels: {problem}"]))
    if not is_openblas:
        return Kernels(blas)
    choice = Choice(named, NAMED_KERNELS) if named != "auto" else _resumed(run_dir, resume) or _fastest(blas)
    if choice.kernels.casefold() != blas.kernels.casefold():
        restart_with_kernels(choice.kernels, choice.why)
    return Kernels(blas, choice.kernels, choice.why, may_change=named == "auto")


def settle_recorded_kernels(recorded: str) -> Kernels:
    """See to it that this process computes with the kernels in what `str(Blas)` gave elsewhere, if it can.

    It may not return: then the command starts again. OPENBLAS_CORETYPE in the environment comes first.
    """
    blas, asked = blas_in_use(), kernels_asked_for()
    if asked is not None:
        return Kernels(blas, *asked)
    kernels = recorded_kernels(recorded)
    if kernels is None or blas.library != OPENBLAS or not blas.kernels or this_processor().lacks(kernels):
        return Kernels(blas)
    choice = Choice(kernels, "those of the run")
    if choice.kernels.casefold() != blas.kernels.casefold():
        restart_with_kernels(choice.kernels, choice.why)
    return Kernels(blas, choice.kernels, choice.why)


def _problem(named: str, blas: Blas) -> str | None:
    """Why the kernels that the recipe names cannot be had here."""
    if blas.library != OPENBLAS or not blas.kernels:
        return f"expected 'auto', since NumPy computes with {blas} here, which has no choice of kernels; got {named!r}"
    lacking = this_processor().lacks(named)
    if lacking:
        return (
            f"this processor cannot execute {named!r}, which needs {', '.join(lacking)}; 'auto' finds out what it can"
        )
    return None


def _resumed(run_dir: Path | None, resume: str) -> Choice | None:
    """The kernels of the checkpoint to resume from, if there is one that names them and this processor has them."""
    if resume == "never" or (resume == "auto" and run_dir is None):
        return None
    try:
        if resume != "auto":
            manifest = read_manifest(Path(resume), PosixStorage())
        else:
            assert run_dir is not None
            # The newest whose manifest is right, without a look at its arrays: its neighbours have the same kernels.
            entries = RunDirectory(run_dir).store.entries()
            manifest = next(entry.manifest for entry in entries if entry.manifest is not None)
    except (DdpError, OSError, StopIteration):
        return None
    kernels = recorded_kernels(manifest.versions.get("blas", ""))
    if kernels is None or this_processor().lacks(kernels):
        return None
    return Choice(kernels, "those of the checkpoint")


def _fastest(blas: Blas) -> Choice:
    """The fastest kernels here, where they are known or can be measured."""
    processor, cache, launched = this_processor(), user_cache(), launched_ranks()
    choice = remembered(
        cache / "blas" if cache else None,
        (processor.model, sorted(processor.flags), metadata.version("numpy"), blas.version, blas.kernels),
        lambda: fastest_kernels(blas.kernels, processor),
        alone=launched is None or launched[0] == 1,
    )
    return choice or Choice(blas.kernels, OWN_CHOICE)
