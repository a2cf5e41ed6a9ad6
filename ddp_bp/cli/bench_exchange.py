"""`ddp-bp bench exchange`: sums of vectors over ranks, and MPI's tried with each of its algorithms."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from ddp_bp.bench.allreduce import ALGORITHMS, beside_the_best
from ddp_bp.bench.exchange import LIBRARY_CHOICE, ExchangeReport, measure_exchange
from ddp_bp.bench.machine import last_level_cache_bytes
from ddp_bp.cli import options
from ddp_bp.cli.bench_options import byte_size, parsed_by, repeats_option, vector_sizes, workers_option
from ddp_bp.cli.bench_output import show_exchange
from ddp_bp.cli.bench_run import run_benchmark
from ddp_bp.cli.launcher import Launcher
from ddp_bp.cli.measurement import Start, result_option
from ddp_bp.parallel.communicator import Communicator

_NUM_TRIALS = 10


@click.command()
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
    return run_benchmark("exchange", arguments, measure, ExchangeReport, show, num_workers, binds, result, starts)
