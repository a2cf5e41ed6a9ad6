"""`ddp-bp bench`: whole training steps, what they need and what is in them; exchange and recovery are added to it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from ddp_bp.bench.memory import MemoryReport, measure_memory
from ddp_bp.bench.protection import ProtectionReport, measure_protection
from ddp_bp.bench.scaling import ScalingReport, measure_scaling
from ddp_bp.bench.shards import ShardsReport, measure_shards
from ddp_bp.bench.training import TrainingReport, measure_training
from ddp_bp.cli import options
from ddp_bp.cli.bench_exchange import exchange
from ddp_bp.cli.bench_options import (
    models_option,
    parsed_by,
    repeats_option,
    shard_numbers,
    workers_option,
)
from ddp_bp.cli.bench_output import (
    show_memory,
    show_protection,
    show_scaling,
    show_shards,
    show_training,
)
from ddp_bp.cli.bench_recovery import recovery
from ddp_bp.cli.bench_run import run_benchmark
from ddp_bp.cli.launcher import Launcher
from ddp_bp.cli.measurement import Start, result_option
from ddp_bp.parallel.communicator import Communicator


@click.group()
def bench() -> None:
    """Measure exchange, steps, shards, memory, scaling, protection and recovery, beside MPI and PyTorch.

    What is compared takes turns within one run, each turn after a barrier and as long as its slowest rank; times are
    medians, ratios are medians of the ratios turn by turn. PyTorch is compared with where all ranks have it. Leave the
    machine alone meanwhile.
    """


bench.add_command(exchange)
bench.add_command(recovery)


@bench.command()
@workers_option
@models_option
@repeats_option(15, "a block of steps is timed")
@options.bind_option
@options.json_option
@result_option
def training(
    num_workers: int | None, models: tuple[str, ...], repeats: int, binds: bool, as_json: bool, result: Path | None
) -> int:
    """Whole training steps, beside PyTorch DDP.

    Networks with Adam on made-up data, beside DistributedDataParallel over gloo, which takes turns with ours on the
    same cores, in processes of its own. PyTorch has its best settings: gradients as views into buckets, a static
    graph, fused Adam, one thread a rank, a batch that is in memory already, and the best of several bucket sizes.
    Our steps load their batches.
    """
    arguments = ["--models", ",".join(models), "--repeats", str(repeats)]

    def measure(communicator: Communicator) -> TrainingReport:
        return measure_training(communicator, models, repeats)

    show = partial(show_training, as_json=as_json)
    return run_benchmark("training", arguments, measure, TrainingReport, show, num_workers, binds, result)


@bench.command()
@workers_option
@models_option
@click.option(
    "--shards-per-rank",
    callback=parsed_by(shard_numbers),
    default="4",
    show_default=True,
    metavar="NUMBER,...",
    help="Into how many shards the batch of a rank is cut, besides one.",
)
@repeats_option(15, "a block of steps is timed")
@options.bind_option
@options.json_option
@result_option
def shards(
    num_workers: int | None,
    models: tuple[str, ...],
    shards_per_rank: tuple[int, ...],
    repeats: int,
    binds: bool,
    as_json: bool,
    result: Path | None,
) -> int:
    """Training steps with more shards than ranks.

    The batch stays the same, and is cut into more shards (`train.shards`), which a rank computes one after another.
    Shown is how much longer a step then takes than with one shard a rank.
    """
    arguments = ["--models", ",".join(models), "--repeats", str(repeats)]
    arguments += ["--shards-per-rank", ",".join(map(str, shards_per_rank))]

    def measure(communicator: Communicator) -> ShardsReport:
        return measure_shards(communicator, models, shards_per_rank, repeats)

    show = partial(show_shards, as_json=as_json)
    return run_benchmark("shards", arguments, measure, ShardsReport, show, num_workers, binds, result)


@bench.command()
@workers_option
@models_option
@repeats_option(15, "a block of steps is timed")
@options.bind_option
@options.json_option
@result_option
def scaling(
    num_workers: int | None, models: tuple[str, ...], repeats: int, binds: bool, as_json: bool, result: Path | None
) -> int:
    """Samples per second on 1 to n ranks, and memory.

    The batch of a rank is fixed, and all numbers of ranks take turns. Efficiency is the throughput over n times
    that of one rank. Memory is that of all processes of a node, interpreter and libraries included, where a page
    that several share counts once (PSS). Faults are minor page faults of a steady step, on the rank that meets
    most.
    """
    arguments = ["--models", ",".join(models), "--repeats", str(repeats)]

    def measure(communicator: Communicator) -> ScalingReport:
        return measure_scaling(communicator, models, repeats)

    show = partial(show_scaling, as_json=as_json)
    return run_benchmark("scaling", arguments, measure, ScalingReport, show, num_workers, binds, result)


@bench.command()
@workers_option
@click.option(
    "--parameters",
    "num_parameters",
    type=click.IntRange(min=8),
    default=20_000_000,
    show_default=True,
    help="About how many parameters the network has.",
)
@options.bind_option
@options.json_option
@result_option
def memory(num_workers: int | None, num_parameters: int, binds: bool, as_json: bool, result: Path | None) -> int:
    """Memory of weights, gradients and state on a node, beside PyTorch DDP.

    A network under Adam is trained for a few steps by ours and then by DistributedDataParallel over gloo, in the same
    processes. Counted is the memory of all processes of a node, a page that several share once (PSS), less what they
    took before the model was built: interpreter and libraries.
    """

    def measure(communicator: Communicator) -> MemoryReport:
        return measure_memory(communicator, num_parameters)

    show = partial(show_memory, as_json=as_json)
    arguments = ["--parameters", str(num_parameters)]
    return run_benchmark("memory", arguments, measure, MemoryReport, show, num_workers, binds, result)


@bench.command()
@workers_option
@models_option
@repeats_option(60, "a block of steps is timed")
@options.bind_option
@options.json_option
@result_option
def protection(
    num_workers: int | None, models: tuple[str, ...], repeats: int, binds: bool, as_json: bool, result: Path | None
) -> int:
    """What a step takes longer for being safe.

    Steps with all that is done in case something goes wrong, beside steps without: marks of what is written, with which
    others go on after a death (where MPI lets them); the look at every gradient, whether it is finite; and the ledger.
    Each of these alone may come out as nothing, or less, where its share is smaller than what chance makes of it.
    """
    arguments = ["--models", ",".join(models), "--repeats", str(repeats)]

    def measure(communicator: Communicator) -> ProtectionReport:
        return measure_protection(communicator, models, repeats)

    def starts(launcher: Launcher, start: Start[ProtectionReport]) -> ProtectionReport:
        return start((), ["--with-ft", "ulfm"] if launcher.reports_deaths else ())

    show = partial(show_protection, as_json=as_json)
    return run_benchmark("protection", arguments, measure, ProtectionReport, show, num_workers, binds, result, starts)
