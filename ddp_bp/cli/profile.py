"""`ddp-bp profile`: run some training steps of a recipe and show where their time goes. Trains and saves nothing."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from ddp_bp.cli import options
from ddp_bp.cli.environment import user_cache
from ddp_bp.cli.kernels import settle_kernels
from ddp_bp.cli.measurement import Measurement, result_option, run_measurement
from ddp_bp.cli.profile_output import ProfileFiles, show_report
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.recipes import Recipe, load_recipe
from ddp_bp.recipes.schema import resolve
from ddp_bp.worker.assemble import Job, assemble
from ddp_bp.worker.blas import check_same_blas, gather_blas
from ddp_bp.worker.datasource import data_problems
from ddp_bp.worker.factory import model_problems
from ddp_bp.worker.failures import together
from ddp_bp.worker.profiling.measure import RankProfile, measure


class Start(msgspec.Struct, frozen=True):
    """What rank 0 tells the others, so that all of them run the same steps."""

    recipe: Recipe
    base: str


@click.command()
@options.recipe_argument
@options.workers_option(required=False, default=None)
@click.option(
    "--steps", "num_steps", type=click.IntRange(min=1), default=10, show_default=True, help="Steps to look at."
)
@options.set_option
@options.bind_option
@click.option(
    "--trace",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a Chrome trace (JSON) to this file, for https://ui.perfetto.dev: a lane for each rank and phase.",
)
@click.option(
    "--graph",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the recorded graph to this file: .svg (with Graphviz) or .dot.",
)
@options.json_option
@result_option
def profile(
    recipe: str,
    num_workers: int | None,
    num_steps: int,
    overrides: tuple[str, ...],
    binds: bool,
    trace: Path | None,
    graph: Path | None,
    as_json: bool,
    result: Path | None,
) -> int:
    """Run some training steps of RECIPE and show where the time goes: by operation, by module and by phase.

    One step to warm up is not counted. With -n the steps run on so many ranks under mpirun, and under a launcher of
    your own on those that it started; the tables sum over ranks. Nothing is saved but the files that are asked for.
    """
    files = ProfileFiles(trace, graph)
    files.check()
    measurement = Measurement(
        name="profiling",
        arguments=[
            *("profile", recipe, "--steps", str(num_steps)),
            *(argument for override in overrides for argument in ("--set", override)),
        ],
        measure=lambda communicator: _measure(communicator, recipe, overrides, num_steps),
        answer_type=list[RankProfile],
        show=lambda profiles: show_report(recipe, profiles, files.write(recipe, profiles), as_json=as_json),
        kernels=settle_kernels(recipe, overrides, None, "never"),
        binds=binds,
        check=lambda world_size: _assemble(recipe, overrides, world_size),
    )
    return run_measurement(measurement, num_workers, result)


def _assemble(name: str, overrides: tuple[str, ...], world_size: int) -> tuple[Start, Job]:
    recipe, base = load_recipe(name, overrides, model_problems, data_problems)
    recipe = resolve(recipe, world_size, None)
    return Start(recipe, str(base)), assemble(recipe, base, check_data=True, cache=user_cache())


def _measure(communicator: Communicator, name: str, overrides: tuple[str, ...], num_steps: int) -> list[RankProfile]:
    """Build the job on every rank, and measure it. Collective."""
    ranks_blas = gather_blas(communicator)

    def begin() -> tuple[Start, Job] | None:
        if communicator.rank != 0:
            return None
        made = _assemble(name, overrides, communicator.size)
        if not made[0].recipe.blas.allow_mixed:
            check_same_blas(ranks_blas)
        return made

    first = together(communicator, begin)
    told = communicator.allgather_bytes(msgspec.json.encode(first[0]) if first else b"")[0]
    start = msgspec.json.decode(told, type=Start)

    def build() -> Job:
        return assemble(start.recipe, Path(start.base), check_data=False, cache=user_cache())

    job = together(communicator, lambda: first[1] if first else build())
    return measure(communicator, job, num_steps)
