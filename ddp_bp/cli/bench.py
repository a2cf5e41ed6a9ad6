"""`ddp-bp bench`: the exchange, whole training steps and how they scale, measured beside MPI and PyTorch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from ddp_bp.bench.allreduce import ALGORITHMS, beside_the_best
from ddp_bp.bench.exchange import LIBRARY_CHOICE, ExchangeReport, measure_exchange
from ddp_bp.bench.machine import last_level_cache_bytes
from ddp_bp.bench.memory import MemoryReport, measure_memory
from ddp_bp.bench.models import MODELS
from ddp_bp.bench.scaling import ScalingReport, measure_scaling
from ddp_bp.bench.shards import ShardsReport, measure_shards
from ddp_bp.bench.training import TrainingReport, measure_training
from ddp_bp.cli import options
from ddp_bp.cli.bench_output import show_exchange, show_memory, show_scaling, show_shards, show_training
from ddp_bp.cli.bench_recovery import recovery
from ddp_bp.cli.environment import launched_ranks
from ddp_bp.cli.kernels import settle_kernels
from ddp_bp.cli.launcher import Launcher
from ddp_bp.cli.measurement import Answer, Measurement, Start, result_option, run_measurement
from ddp_bp.cli.options import Function
from ddp_bp.data.source import suggestion
from ddp_bp.parallel.communicator import Communicator

DEFAULT_WORKERS = 2
_NUM_TRIALS = 10
_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def byte_size(text: str) -> int:
    """`4096`, `64KiB`, `1MiB` or `1GiB` as a number of bytes, at least one. Raises click.BadParameter."""
    matched = re.fullmatch(r"\s*(\d+)\s*([A-Za-z]*)\s*", text)
    num_bytes = int(matched[1]) * _UNITS.get(matched[2].lower(), 0) if matched else 0
    if not num_bytes:
        raise click.BadParameter(f"expected a size such as 4096, 64KiB or 1MiB, got {text!r}")
    return num_bytes


def vector_sizes(text: str) -> tuple[int, ...]:
    """Sizes of vectors of float32, divided by commas, in bytes. Raises click.BadParameter."""
    sizes = tuple(map(byte_size, text.split(",")))
    for size in sizes:
        if size % 4:
            raise click.BadParameter(f"a vector of float32 takes a multiple of 4 bytes, got {size}")
    return sizes


def model_names(text: str) -> tuple[str, ...]:
    """Names of models, divided by commas. Raises click.BadParameter."""
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in MODELS:
            raise click.BadParameter(
                f"there is no model {name!r}; there is {', '.join(MODELS)}{suggestion(name, MODELS)}"
            )
    return names


def shard_numbers(text: str) -> tuple[int, ...]:
    """Numbers of shards, divided by commas, each at least one. Raises click.BadParameter."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part.isdecimal() or int(part) < 1:
            raise click.BadParameter(f"expected numbers of shards such as 2,4, got {part!r}")
    return tuple(map(int, parts))


def _parsed_by(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A callback that gives a command what `parse` makes of the option's text."""
    return lambda _context, _parameter, text: None if text is None else parse(text)


_workers_option = click.option(
    "-n",
    "--workers",
    "num_workers",
    type=click.IntRange(min=1),
    help=f"Number of workers.  [default: {DEFAULT_WORKERS}, or those of your own launcher]",
)
_models_option = click.option(
    "--models",
    callback=_parsed_by(model_names),
    default=",".join(MODELS),
    show_default=True,
    metavar="NAME,...",
    help="Which networks to train: " + "; ".join(f"{name} is {model.description}" for name, model in MODELS.items()),
)


def _repeats_option(default: int, what: str) -> Callable[[Function], Function]:
    return click.option(
        "--repeats", type=click.IntRange(min=1), default=default, show_default=True, help=f"How often {what}."
    )


@click.group()
def bench() -> None:
    """Measure exchange, training steps, shards, memory, scaling and recovery, beside MPI and PyTorch.

    What is compared takes turns within one run, each turn after a barrier and as long as its slowest rank; times are
    medians, ratios are medians of the ratios turn by turn. PyTorch is compared with where all ranks have it. Leave the
    machine alone meanwhile.
    """


bench.add_command(recovery)


@bench.command()
@_workers_option
@click.option(
    "--sizes",
    callback=_parsed_by(vector_sizes),
    default="4KiB,64KiB,1MiB,16MiB,64MiB",
    show_default=True,
    metavar="SIZE,...",
    help="Sizes of the vectors of float32 that are summed.",
)
@_repeats_option(50, "each way to sum is timed")
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
    callback=_parsed_by(byte_size),
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
@_workers_option
@_models_option
@_repeats_option(15, "a block of steps is timed")
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
@_workers_option
@_models_option
@click.option(
    "--shards-per-rank",
    callback=_parsed_by(shard_numbers),
    default="4",
    show_default=True,
    metavar="NUMBER,...",
    help="Into how many shards the batch of a rank is cut, besides one.",
)
@_repeats_option(15, "a block of steps is timed")
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
@_workers_option
@_models_option
@_repeats_option(15, "a block of steps is timed")
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
@_workers_option
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
