"""`ddp-bp coordinator`: the process that keeps checkpoints, ledger and metrics of one job."""

from __future__ import annotations

import logging
import os
import traceback
from pathlib import Path

import click

from ddp_bp.cli import options
from ddp_bp.cli.job_folder import clear_job
from ddp_bp.cli.kept_coordinator import CRASHED_EXIT_CODE
from ddp_bp.cli.prepare import check_ports
from ddp_bp.cli.run_hold import check_not_held
from ddp_bp.coordinator.config import CoordinatorConfig
from ddp_bp.coordinator.server import run
from ddp_bp.errors import DdpError
from ddp_bp.recipes import load_recipe
from ddp_bp.recipes.schema import start_id
from ddp_bp.worker.rundir import RunDirectory, describe_environment

RANKS_END_SECONDS = 3.0
"""How long ranks may take to notice by themselves that their launcher was killed."""


@click.command()
@options.recipe_argument
@options.workers_option(required=True)
@options.set_option
@click.option("--run-dir", required=True, type=click.Path(path_type=Path, file_okay=False), help="Where it writes.")
@click.option(
    "--total-steps", type=click.IntRange(min=0), help="Steps until the end of training, for the progress shown."
)
@click.option(
    "--linger",
    "linger_seconds",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Go on answering HTTP for so long after the end of the job, so that Prometheus sees how it ended; who reads "
    "the metrics every 20 seconds or more often is waited for in any case.",
)
@click.option("--parent-fd", type=click.IntRange(min=0), hidden=True, help="A pipe at whose end of file it ends.")
@click.option("--takes-over", is_flag=True, hidden=True, help="In the place of one that was killed.")
@click.option("--num-restarts", type=click.IntRange(min=0), default=0, hidden=True, help="After a failure, so far.")
@click.option("--num-resizes", type=click.IntRange(min=0), default=0, hidden=True, help="Of ranks in number, so far.")
@click.option(
    "--num-spares",
    type=click.IntRange(min=0),
    help="How many ranks are started besides the N, and wait to step in for one that dies.  [default: fault.spares]",
)
@click.option("--most-workers", type=click.IntRange(min=1), hidden=True, help="Its launcher can start up to so many.")
@click.option(
    "--job-folder", type=click.Path(path_type=Path), hidden=True, help="What to clear away if its parent is killed."
)
def coordinator(
    recipe: str,
    num_workers: int,
    overrides: tuple[str, ...],
    run_dir: Path,
    total_steps: int | None,
    linger_seconds: float,
    parent_fd: int | None,
    takes_over: bool,
    num_restarts: int,
    num_resizes: int,
    num_spares: int | None,
    most_workers: int | None,
    job_folder: Path | None,
) -> int:
    """Coordinate one job of RECIPE on N workers, which are started elsewhere.

    It waits for them at the address in RUN_DIR/coordinator.json; start them with
    `ddp-bp worker RECIPE --run-dir RUN_DIR --coordinator ADDRESS`. `train` and `worker` start one by themselves.
    """
    logging.basicConfig(format="ddp-bp coordinator: %(message)s", level=logging.WARNING)
    loaded, _ = load_recipe(recipe, overrides)
    run_directory = RunDirectory(run_dir)
    resolved = run_directory.resolve(loaded, num_workers)
    check_ports(resolved)
    if parent_fd is None:
        # Else it may be the parent that holds the directory.
        check_not_held(run_dir)
    run_directory.check_free()
    if not run_directory.is_started:
        # Its workers come later, and must find the run directory of their recipe.
        run_directory.create(resolved, describe_environment())
    section, checkpoint = resolved.coordinator, resolved.checkpoint
    parent = os.getppid()
    code = _run(
        CoordinatorConfig(
            run_dir=run_dir,
            run_id=start_id(resolved, num_restarts + num_resizes),
            recipe_name=recipe,
            world_size=num_workers,
            num_spares=resolved.fault.spares if num_spares is None else num_spares,
            total_steps=total_steps,
            host=section.host,
            port=section.port,
            http_port=section.http_port,
            checkpoint_every_steps=checkpoint.every_steps,
            checkpoint_every_seconds=checkpoint.every_seconds or None,
            keep=checkpoint.keep,
            keep_best=checkpoint.keep_best,
            parent_fd=parent_fd,
            num_restarts=num_restarts,
            num_resizes=num_resizes,
            min_workers=resolved.fault.min_workers,
            most_workers=most_workers,
            suspect_seconds=resolved.fault.suspect_seconds,
            silence_seconds=resolved.fault.silence_seconds,
            hang_seconds=resolved.fault.hang_seconds,
            start_seconds=resolved.fault.start_seconds,
            takes_over=takes_over,
            linger_seconds=linger_seconds,
        )
    )
    if job_folder is not None and os.getppid() != parent:
        clear_job(job_folder, RANKS_END_SECONDS)
    return code


def _run(config: CoordinatorConfig) -> int:
    """The exit code, one of its own after a defect, so that whoever started it starts another one."""
    try:
        return run(config)
    except DdpError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            # A path that cannot be used, which another one could not use either.
            raise
        traceback.print_exc()
        return CRASHED_EXIT_CODE
