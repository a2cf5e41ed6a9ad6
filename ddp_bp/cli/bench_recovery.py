"""`ddp-bp bench recovery`: jobs whose processes are killed, and how long they then stand still, beside torchrun."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import click

from ddp_bp.bench.models import MODELS, write_recipe
from ddp_bp.bench.recovery import (
    COORDINATOR,
    KINDS,
    CoordinatorKill,
    RankKill,
    RecoveryReport,
    check_kinds,
    coordinator_summed_up,
    summed_up,
)
from ddp_bp.bench.torchrun_job import measure_torchrun
from ddp_bp.cli import options
from ddp_bp.cli.bench_output import show_recovery
from ddp_bp.cli.environment import launched_ranks, marked_environment
from ddp_bp.cli.job_folder import job_folder
from ddp_bp.cli.launcher import find_launcher
from ddp_bp.cli.processes import start_logged
from ddp_bp.cli.recovery_job import JobMaker
from ddp_bp.cli.signals import STOP_EXIT_CODES, stop_signals
from ddp_bp.data.source import suggestion
from ddp_bp.errors import InputError
from ddp_bp.recipes import load_recipe
from ddp_bp.worker.datasource import data_problems
from ddp_bp.worker.factory import model_problems

DEFAULT_WORKERS = 4
_CHECKPOINT_EVERY_STEPS = 50
# As good as without an end, whatever the recipe says.
_ENDLESS = ("train.epochs=1000000000", "train.max_steps=1000000000000")


def kind_names(text: str) -> tuple[str, ...]:
    """Names of what is killed, divided by commas. Raises click.BadParameter."""
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in KINDS:
            raise click.BadParameter(f"there is no {name!r}; there is {', '.join(KINDS)}{suggestion(name, KINDS)}")
    return tuple(dict.fromkeys(names))


@click.command()
@click.option(
    "-n",
    "--workers",
    "num_workers",
    type=click.IntRange(min=1),
    default=DEFAULT_WORKERS,
    show_default=True,
    help="Number of workers.",
)
@click.option(
    "--kill",
    "kinds",
    callback=lambda _context, _parameter, text: kind_names(text),
    default=",".join(KINDS),
    show_default=True,
    metavar="NAME,...",
    help="What to kill: " + "; ".join(f"{name} is {text}" for name, text in KINDS.items()) + ".",
)
@click.option("--times", type=click.IntRange(min=1), default=10, show_default=True, help="How often each.")
@click.option(
    "--recovery",
    type=click.Choice(["auto", "restart"]),
    default="auto",
    show_default=True,
    help="`fault.recovery`: whether ranks that are left go on, where MPI offers that, or all start again.",
)
@click.option(
    "--spares",
    "num_spares",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="`fault.spares`: how many ranks wait to take the place of dead ones. Without any, others are started.",
)
@click.option(
    "--model",
    type=click.Choice(list(MODELS)),
    default="middle",
    show_default=True,
    help="Which network to train: " + "; ".join(f"{name} is {model.description}" for name, model in MODELS.items()),
)
@click.option("--recipe", metavar="RECIPE", help="Train this instead; PyTorch is then left out.")
@options.set_option
@click.option("--peer/--no-peer", default=True, show_default=True, help="Measure torchrun where PyTorch is installed.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of who is killed, and when.")
@options.bind_option
@options.json_option
def recovery(
    num_workers: int,
    kinds: tuple[str, ...],
    times: int,
    recovery: str,
    num_spares: int,
    model: str,
    recipe: str | None,
    overrides: tuple[str, ...],
    peer: bool,
    seed: int,
    binds: bool,
    as_json: bool,
) -> int:
    """How long a job stands still when a process dies.

    For each kill a job is started as by `ddp-bp train`, and after some steps SIGKILL ends processes of it at a moment
    drawn at random. Timed is from the kill to the first step that is committed afterwards; beside it stand the same
    less the time for the shards that the others computed in place of dead ranks, the time until steps are reached that
    had not been before, and the time until as many ranks as before have committed a step. For the coordinator, for
    which no rank waits, it is the time until it answers at its address again, with all ranks.

    Beside it PyTorch trains the same network with DistributedDataParallel over gloo under torchrun, which starts all
    workers again when one has died, from a checkpoint that rank 0 writes as often as ours are.
    """
    if launched_ranks() is not None:
        raise InputError("bench recovery starts jobs of its own: call it without a launcher, with -n for their workers")
    check_kinds(kinds, num_workers)
    launcher = find_launcher()
    overrides = (*overrides, f"fault.recovery={recovery}", f"fault.spares={num_spares}")
    with stop_signals() as asked, job_folder() as folder:

        def check() -> None:
            if asked:
                raise _Asked

        def begin(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
            with log.open("xb") as file:
                return start_logged(command, marked_environment(folder), file.fileno())

        chosen, generator = MODELS[model], random.Random(seed)
        trained = recipe or str(write_recipe(chosen, num_workers, _CHECKPOINT_EVERY_STEPS, folder))
        # Whatever is wrong with the input is found before a process is started.
        load_recipe(trained, overrides, model_problems, data_problems)
        more = [argument for override in (*overrides, *_ENDLESS) for argument in ("--set", override)]
        maker = JobMaker(
            trained, (*more, *(() if binds else ("--no-bind",))), num_workers, num_spares, folder, begin, check
        )
        try:
            ranks, coordinator, shard_seconds = _kill(maker, kinds, times, generator)
            theirs = None
            if peer and recipe is None:
                every_steps = _CHECKPOINT_EVERY_STEPS
                theirs = measure_torchrun(begin, check, folder, model, num_workers, every_steps, times, generator)
        except _Asked:
            return STOP_EXIT_CODES[asked[0]]
    steps = [kill.step_seconds for kills in ranks.values() for kill in kills]
    steps += [kill.step_seconds for kill in coordinator]
    report = RecoveryReport(
        world_size=num_workers,
        num_spares=num_spares,
        times=times,
        mpi=launcher.library,
        trained=recipe or f"{model}: {chosen.description}",
        recovery=recovery,
        step_seconds=median(steps),
        shard_seconds=median(shard_seconds) if shard_seconds else None,
        ranks=[summed_up(KINDS[kind], kills) for kind, kills in ranks.items()],
        coordinator=coordinator_summed_up(coordinator) if coordinator else None,
        peer=theirs,
    )
    show_recovery(report, as_json=as_json)
    return 0


def _kill(
    maker: JobMaker, kinds: Sequence[str], times: int, generator: random.Random
) -> tuple[dict[str, list[RankKill]], list[CoordinatorKill], list[float]]:
    """The kills of ranks by kind, those of the coordinator, and how long a shard took; kinds take turns."""
    ranks: dict[str, list[RankKill]] = {kind: [] for kind in kinds if kind != COORDINATOR}
    coordinator: list[CoordinatorKill] = []
    shard_seconds: list[float] = []
    for number in range(times):
        for kind in kinds:
            with maker.start(f"{kind}-{number}") as job:
                if kind == COORDINATOR:
                    coordinator.append(job.kill_coordinator(generator))
                else:
                    kill, seconds = job.kill_ranks(kind, generator)
                    ranks[kind].append(kill)
                    shard_seconds.append(seconds)
    return ranks, coordinator, shard_seconds


class _Asked(Exception):
    """A signal has arrived that asks for the end."""
