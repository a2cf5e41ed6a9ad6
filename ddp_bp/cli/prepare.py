"""Everything that is checked before a process is started or a file is written, for `train` and for `worker`."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddp_bp.checkpoint import Checkpoint
from ddp_bp.cli.environment import user_cache
from ddp_bp.cli.run_hold import check_not_held
from ddp_bp.coordinator.sockets import bind_http
from ddp_bp.errors import AddressError
from ddp_bp.recipes import Recipe, load_recipe
from ddp_bp.worker.assemble import Job, assemble
from ddp_bp.worker.branch import take_over_ledger
from ddp_bp.worker.datasource import data_problems
from ddp_bp.worker.factory import model_problems
from ddp_bp.worker.rundir import SUMMARY_FILE, RunDirectory, check_checkpoint, describe_environment


@dataclass(frozen=True)
class Prepared:
    """A job that can be started: nothing about it is left to be refused but what happens while it runs."""

    recipe: Recipe
    base: Path
    job: Job
    run: RunDirectory
    checkpoint: Checkpoint | None

    def is_finished(self) -> bool:
        """Whether the run has been trained to its end."""
        return self.run.finished_summary(self.recipe, self.job.total_steps) is not None

    def summary(self) -> dict[str, Any]:
        """What a start of it that ended well has left."""
        summary: dict[str, Any] = json.loads((self.run.path / SUMMARY_FILE).read_bytes())
        return summary

    def create(self, **more: Any) -> None:
        """Make the run directory, with the recipe and what else `ledger verify` and `replay` need later, and `more`.

        Raises InputError if the disk refuses.
        """
        environment = describe_environment(
            recipe_folder=str(self.base.resolve()), training_samples=self.job.plan.num_samples, **more
        )
        self.run.create(self.recipe, environment)
        take_over_ledger(self.run.path, self.checkpoint, warn)


def prepare(
    name: str,
    overrides: tuple[str, ...],
    world_size: int,
    run_dir: Path,
    resume: str,
    *,
    checked: bool = False,
    starts_coordinator: bool = True,
    listens_here: bool = True,
) -> Prepared:
    """Read the recipe, load and check the data, build the model, and choose the checkpoint to resume from.

    `checked`: the process that started this one has done this before, so that values need no second look, and `never`
    means that it found no checkpoint to resume from. `starts_coordinator`: whether there is none yet, so that nobody
    may be writing to the run directory. `listens_here`: whether it listens here, so that its ports must be free.

    Raises:
        InputError: with what is wrong, where, and what to do. Nothing has been written.
    """
    recipe, base = load_recipe(name, overrides, model_problems, data_problems)
    run = RunDirectory(run_dir)
    if starts_coordinator:
        check_not_held(run_dir)
        run.check_free()
    recipe = run.resolve(recipe, world_size)
    if starts_coordinator and listens_here:
        check_ports(recipe)
    job = assemble(recipe, base, check_data=not checked, cache=user_cache())
    checkpoint = None if checked and resume == "never" else run.select_checkpoint(resume, warn)
    if checkpoint is not None:
        check_checkpoint(checkpoint, job, warn)
        if not checked:
            if resume != "auto":
                run.check_newest(checkpoint)
            _tell_of_schedule(job)
    return Prepared(recipe, base, job, run, checkpoint)


def _tell_of_schedule(job: Job) -> None:
    """Warn of a resume that trains on after a schedule has ended next to 0, as one does that raises `train.epochs`."""
    step, rate = job.schedule.end_before(job.total_steps) or (0, math.inf)
    if rate < job.recipe.optimizer.lr / 1000:
        warn(
            f"schedule '{job.recipe.schedule.name}' ends at step {step}, as it did at the first start, and training at "
            f"step {job.total_steps}: the learning rate stays {rate:.3g} in between, at which next to nothing is "
            f"learned; a run with a longer schedule begins in another --run-dir"
        )


def check_ports(recipe: Recipe) -> None:
    """Raise AddressError if a coordinator here could not listen where the recipe says."""
    section = recipe.coordinator
    for key, port, called in (("port", section.port, "port"), ("http_port", section.http_port, "HTTP port")):
        try:
            bind_http(section.host, port, called).close()
        except AddressError as error:
            raise AddressError(f"coordinator.host = {section.host}, coordinator.{key} = {port}: {error}") from error


def warn(text: str) -> None:
    """Tell the user something that does not stop the job."""
    print(f"ddp-bp: warning: {text}", file=sys.stderr)
