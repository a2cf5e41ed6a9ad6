"""`ddp-bp profile`: run some training steps of a recipe and show where their time goes. Trains and saves nothing."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import msgspec

from ddp_bp.cli import options
from ddp_bp.cli.environment import launched_ranks, user_cache
from ddp_bp.cli.processes import end_process_group, mpirun_command, start_mpirun
from ddp_bp.cli.profile_output import ProfileFiles, show_report
from ddp_bp.cli.ranks import run_as_rank
from ddp_bp.cli.signals import STOP_EXIT_CODES, stop_signals
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.recipes import Recipe, load_recipe
from ddp_bp.recipes.schema import resolve
from ddp_bp.worker.assemble import Job, assemble
from ddp_bp.worker.factory import model_problems
from ddp_bp.worker.failures import together
from ddp_bp.worker.profiling.measure import RankProfile, decode, encode, measure

POLL_SECONDS = 0.2
_STDERR = 2


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
@click.option("--result", type=click.Path(path_type=Path), hidden=True, help="Where ranks that we started answer.")
def profile(
    recipe: str,
    num_workers: int | None,
    num_steps: int,
    overrides: tuple[str, ...],
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

    def answer(profiles: list[RankProfile]) -> None:
        if result is not None:
            result.write_bytes(encode(profiles))
        else:
            show_report(recipe, profiles, files.write(recipe, profiles), as_json=as_json)

    if num_workers is None or num_workers == 1 or launched_ranks() is not None:

        def work(communicator: Communicator) -> int:
            profiles = _measure(communicator, recipe, overrides, num_steps)
            together(communicator, lambda: answer(profiles) if communicator.rank == 0 else None)
            return 0

        return run_as_rank(num_workers, work, supervised=result is not None)
    # Whatever is wrong with the recipe is found before a process is started.
    _assemble(recipe, overrides, num_workers)
    with stop_signals() as asked, tempfile.TemporaryDirectory(prefix="ddp-bp-profile-") as folder:
        answer_file = Path(folder) / "result"
        arguments = ["profile", recipe, "-n", str(num_workers), "--steps", str(num_steps), "--result", str(answer_file)]
        arguments += [argument for override in overrides for argument in ("--set", override)]
        code = _run_mpirun(mpirun_command(num_workers, arguments), asked)
        if code == 0 and answer_file.exists():
            answer(decode(answer_file.read_bytes()))
            return 0
    if not asked:
        print("ddp-bp: profiling did not finish; the first error above says why", file=sys.stderr)
    return code or 1


def _assemble(name: str, overrides: tuple[str, ...], world_size: int) -> tuple[Start, Job]:
    recipe, base = load_recipe(name, overrides, model_problems)
    recipe = resolve(recipe, world_size, None)
    return Start(recipe, str(base)), assemble(recipe, base, check_data=True, cache=user_cache())


def _measure(communicator: Communicator, name: str, overrides: tuple[str, ...], num_steps: int) -> list[RankProfile]:
    """Build the job on every rank, and measure it. Collective."""
    first = together(
        communicator, lambda: _assemble(name, overrides, communicator.size) if communicator.rank == 0 else None
    )
    told = communicator.allgather_bytes(msgspec.json.encode(first[0]) if first else b"")[0]
    start = msgspec.json.decode(told, type=Start)

    def build() -> Job:
        return assemble(start.recipe, Path(start.base), check_data=False, cache=user_cache())

    job = together(communicator, lambda: first[1] if first else build())
    return measure(communicator, job, num_steps)


def _run_mpirun(command: list[str], asked: list[str]) -> int:
    """Run mpirun to its end; its exit code, or that of the first signal in `asked`, which ends it."""
    # Stdout is for what we show.
    mpirun = start_mpirun(command, stdout=_STDERR, stderr=_STDERR)
    try:
        while mpirun.poll() is None and not asked:
            with contextlib.suppress(subprocess.TimeoutExpired):
                mpirun.wait(POLL_SECONDS)
    finally:
        end_process_group(mpirun)
    return STOP_EXIT_CODES[asked[0]] if asked else mpirun.returncode
