"""`ddp-bp bench`: the exchange, whole training steps and how they scale, measured beside MPI and PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click

from ddp_bp.bench.allreduce import ALGORITHMS, beside_the_best
from ddp_bp.bench.exchange import LIBRARY_CHOICE, ExchangeReport, measure_exchange
from ddp_bp.bench.machine import last_level_cache_bytes
from ddp_bp.bench.memory import MemoryReport, measure_memory
from ddp_bp.bench.scaling import ScalingReport, measure_scaling
from ddp_bp.bench.shards import ShardsReport, measure_shards
from ddp_bp.bench.training import TrainingReport, measure_training
from ddp_bp.cli import options
from ddp_bp.cli.bench_options import (
    DEFAULT_WORKERS,
    byte_size,
    models_option,
    parsed_by,
    repeats_option,
    shard_numbers,
    vector_sizes,
    workers_option,
)
from ddp_bp.cli.bench_output import show_exchange, show_memory, show_scaling, show_shards, show_training
from ddp_bp.cli.bench_recovery import recovery
from ddp_bp.cli.environment import launched_ranks
from ddp_bp.cli.kernels import settle_kernels
from ddp_bp.cli.launcher import Launcher
from ddp_bp.cli.measurement import Answer, Measurement, Start, result_option, run_measurement
from ddp_bp.parallel.communicator import Communicator

_NUM_TRIALS = 10


@click.group()
def bench() -> None:
    """Measure exchange, training steps, shards, memory, scaling and recovery, beside MPI and PyTorch.

    What is compared takes turns within one run, each turn after a barrier and as long as its slowest rank; times are
    medians, ratios are medians of the ratios turn by turn. PyTorch is compared with where all ranks have it. Leave the
    machine alone meanwhile.
    """


bench.add_command(recovery)


@bench.command()
@workers_option
@click.option(
    "--sizes",
    callback=parsed_by(vector_sizes),
    default="4KiB,64KiB,1MiB,16MiB,64MiB",
    show_default=True,
    metavar="SIZE,...",
    help="Sizes of the vectors of float32 that are summed.",
)
@repeats_option(50, "each way to sum is timed")
@click.option(
    "--parameters",
    "num_parameters",
    type=click.IntRange(min=0),
    default=20_000_000,
    show_default=True,
    help="Parameters that reduce + Adam is timed on; 0: not at all.",
)
@click.option(
    "--allreduce",
    type=click.Choice(["best", "default"]),
    default="best",
    show_default=True,
    help="Whether MPI_Allreduce has the best of Open MPI's algorithms for each size, each of which is tried in a start "
    "of its own, or the one that the library chooses. Under a launcher of your own it is the latter.",
)
@click.option("--algorithm", default=LIBRARY_CHOICE, hidden=True, help="What MPI was started with.")
@click.option("--only-mpi", is_flag=True, hidden=True, help="Measure MPI alone, as a trial of an algorithm.")
@click.option(
    "--cache",
    "cache_bytes",
    callback=parsed_by(byte_size),
    metavar="SIZE",
    help="Size of the last-level cache, which all buffers together exceed.  [default: as the kernel says]",
)
@options.bind_option
@options.json_option
@result_option
def exchange(
    num_workers: int | None,
    sizes: tuple[int, ...],
    repeats: int,
    num_parameters: int,
    cache_bytes: int | None,
    allreduce: str,
    algorithm: str,
    only_mpi: bool,
    binds: bool,
    as_json: bool,
    result: Path | None,
) -> int:
    """Sum vectors over ranks: our exchange, MPI and gloo.

    Timed is from "partials ready" to "every rank can read the sum", of our exchange, of MPI_Allreduce and of gloo's
    all-reduce. MPI has the algorithm that is best at that size. Buffers rotate, so that none is in the cache when its
    turn comes. Bus bandwidth is that of nccl-tests, 2 (W - 1) / W * bytes / time; its share of copying is W times that
    over the bytes that all ranks, copying at once, read and write per second.

    Reduce + Adam is one pass over all parameters. At W ranks it must move 4 (W + 6) bytes for each: read W
    partials, the parameter and two averages; write these three. Shown is how much of the bandwidth of copying that
    makes.
    """
    cache = last_level_cache_bytes() if cache_bytes is None else cache_bytes
    arguments = ["--sizes", ",".join(map(str, sizes)), "--repeats", str(repeats), "--cache", str(cache)]
    arguments += ["--parameters", str(num_parameters)]

    def measure(communicator: Communicator) -> ExchangeReport:
        return measure_exchange(
            communicator, sizes, num_parameters, repeats, cache, algorithm=algorithm, only_mpi=only_mpi
        )

    def starts(launcher: Launcher, start: Start[ExchangeReport]) -> ExchangeReport:
        if allreduce == "default" or not launcher.is_open_mpi:
            return start((), ())
        updates = iter([num_parameters])

        def start_with(algorithm: str, some_sizes: Sequence[int], is_trial: bool) -> ExchangeReport:
            more = ["--algorithm", algorithm, "--sizes", ",".join(map(str, some_sizes))]
            if is_trial:
                more += ["--only-mpi", "--repeats", str(min(repeats, _NUM_TRIALS)), "--parameters", "0"]
            else:
                # Reduce and Adam are measured once.
                more += ["--parameters", str(next(updates, 0))]
            return start(more, ALGORITHMS[algorithm])

        return beside_the_best(start_with, sizes)

    show = partial(show_exchange, as_json=as_json)
    return _run("exchange", arguments, measure, ExchangeReport, show, num_workers, binds, result, starts)


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
    return _run("training", arguments, measure, TrainingReport, show, num_workers, binds, result)


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
    return _run("shards", arguments, measure, ShardsReport, show, num_workers, binds, result)


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
    return _run("scaling", arguments, measure, ScalingReport, show, num_workers, binds, result)


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
    return _run("memory", arguments, measure, MemoryReport, show, num_workers, binds, result)


def _run(
    command: str,
    arguments: list[str],
    measure: Callable[[Communicator], Answer],
    answer_type: type[Answer],
    show: Callable[[Answer], None],
    num_workers: int | None,
    binds: bool,
    result: Path | None,
    starts: Callable[[Launcher, Start[Answer]], Answer] | None = None,
) -> int:
    if num_workers is None and launched_ranks() is None:
        num_workers = DEFAULT_WORKERS
    measurement = Measurement(
        name="the benchmark",
        arguments=["bench", command, *arguments],
        measure=measure,
        answer_type=answer_type,
        show=show,
        kernels=settle_kernels(None),
        binds=binds,
        starts=starts,
    )
    return run_measurement(measurement, num_workers, result)
