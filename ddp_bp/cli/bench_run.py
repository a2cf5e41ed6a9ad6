"""How a benchmark is run: as a measurement on two ranks, if nobody says how many. Knows not what is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ddp_bp.cli.bench_options import DEFAULT_WORKERS
from ddp_bp.cli.environment import launched_ranks
from ddp_bp.cli.kernels import settle_kernels
from ddp_bp.cli.launcher import Launcher
from ddp_bp.cli.measurement import Answer, Measurement, Start, run_measurement
from ddp_bp.parallel.communicator import Communicator


def run_benchmark(
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
    """Run `ddp-bp bench COMMAND` with these `arguments` on `num_workers` ranks; the exit code. See `Measurement`."""
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
