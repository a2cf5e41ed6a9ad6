"""What `ddp-bp bench` shows: tables, or JSON with the same numbers and more."""

from __future__ import annotations

import msgspec

from ddp_bp.bench.exchange import MPI, OURS, ExchangeReport
from ddp_bp.bench.memory import OURS as OUR_MEMORY
from ddp_bp.bench.memory import MemoryReport
from ddp_bp.bench.protection import ProtectionReport
from ddp_bp.bench.recovery import RecoveryReport, Spread
from ddp_bp.bench.scaling import ScalingReport
from ddp_bp.bench.shards import ShardsReport
from ddp_bp.bench.training import TrainingReport
from ddp_bp.cli.output import count_text, print_json, print_table, size_text

_NO_TORCH = "PyTorch is not installed on all ranks: ours alone"


def show_exchange(report: ExchangeReport, *, as_json: bool) -> None:
    """Print what `bench exchange` found out."""
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    nodes = "" if report.num_nodes == 1 else f" on {report.num_nodes} nodes"
    print(f"{_ranks(report.world_size)}{nodes}; {_peers(report.mpi, report.torch)}; medians of {report.repeats}")
    copy_rate = f"{size_text(round(report.copy_bytes_per_second))}/s"
    print(
        f"copying, all ranks at once: {copy_rate} read and written; last-level cache {size_text(report.cache_bytes)}\n"
    )
    rows = [
        (
            binary_size_text(size.num_bytes),
            f"{MPI} ({size.algorithm})" if contender.name == MPI else contender.name,
            short_time_text(contender.seconds),
            None if contender.name == OURS else f"{contender.ratio:.3g}",
            f"{size_text(round(contender.bus_bytes_per_second))}/s",
            f"{contender.copy_share:.1%}",
        )
        for size in report.sizes
        for contender in size.contenders
    ]
    print_table(("size", "sum by", "time", f"{OURS} / it", "bus bandwidth", "of copying"), rows)
    update = report.update
    if update is None:
        return
    print(
        f"\nreduce + Adam, {count_text(update.num_parameters)} parameters: {short_time_text(update.seconds)} for "
        f"{size_text(update.bytes_moved)} that must move, {update.copy_share:.1%} of the bandwidth of copying"
    )


def show_training(report: TrainingReport, *, as_json: bool) -> None:
    """Print what `bench training` found out."""
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    print(
        f"{_ranks(report.world_size)}; {_peers(report.mpi, report.torch)}; medians of {report.blocks} blocks of steps\n"
    )
    rows = [
        (
            model.name,
            model.description,
            f"{model.seconds_per_step * 1e3:.4g}",
            None if model.ddp is None else f"{model.ddp.seconds_per_step * 1e3:.4g}",
            None if model.ddp is None else f"{model.ddp.speedup:.3g}",
            None if model.ddp is None else f"{model.ddp.bucket_mb} MB",
            f"{model.products.seconds_per_step * 1e3:.4g}",
            f"{model.products.operations_per_second / 1e9:.3g}",
            None if model.products.ddp_ratio is None else f"{model.products.ddp_ratio:.3g}",
        )
        for model in report.models
    ]
    heads = ("model", "", "ms a step", "PyTorch DDP", "times as fast", "its best bucket")
    print_table((*heads, "products alone", "Gflop/s a rank", "at most times as fast"), rows)


def show_shards(report: ShardsReport, *, as_json: bool) -> None:
    """Print what `bench shards` found out."""
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    print(f"{_ranks(report.world_size)}; {report.mpi}; medians of {report.blocks} blocks of steps\n")
    rows = [
        (
            model.name,
            model.description,
            shards.num_shards,
            f"{shards.seconds_per_step * 1e3:.4g}",
            f"{shards.ratio:.3f}",
            f"{shards.products_ratio:.3f}",
        )
        for model in report.models
        for shards in model.shards
    ]
    print_table(("model", "", "shards", "ms a step", "times as long", "products alone"), rows)


def show_protection(report: ProtectionReport, *, as_json: bool) -> None:
    """Print what `bench protection` found out."""
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    print(f"{_ranks(report.world_size)}; {report.mpi}; medians of {report.blocks} blocks of steps")
    goes_on = "others go on after a death" if report.goes_on else "nobody goes on after a death here: nothing is marked"
    print(f"{goes_on}; shares are of a step without protection\n")
    rows = [
        (
            model.name,
            model.description,
            f"{model.seconds_per_step * 1e3:.4g}",
            *(f"{100 * share:.1f} %" for share in (model.overhead, model.marks, model.looks, model.ledger)),
        )
        for model in report.models
    ]
    print_table(("model", "", "ms a step", "protection", "marks", "is it finite", "ledger"), rows)


def show_scaling(report: ScalingReport, *, as_json: bool) -> None:
    """Print what `bench scaling` found out."""
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    nodes = "" if report.num_nodes == 1 else f" on {report.num_nodes} nodes"
    print(f"1 to {_ranks(report.world_size)}{nodes}; {report.mpi}; medians of {report.blocks} blocks of steps\n")
    rows = [
        (
            model.name,
            model.description,
            ranks.num_ranks,
            f"{ranks.seconds_per_step * 1e3:.4g}",
            count_text(round(ranks.samples_per_second)),
            f"{ranks.efficiency:.3f}",
            size_text(ranks.node_bytes),
            f"{ranks.faults_per_step:.3g}",
        )
        for model in report.models
        for ranks in model.ranks
    ]
    columns = ("model", "", "ranks", "ms a step", "samples/s", "efficiency", "memory a node", "faults a step")
    print_table(columns, rows)


def show_memory(report: MemoryReport, *, as_json: bool) -> None:
    """Print what `bench memory` found out."""
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    nodes = "" if report.num_nodes == 1 else f" on {report.num_nodes} nodes"
    print(f"{_ranks(report.world_size)}{nodes}; {_peers(report.mpi, report.torch)}")
    print(f"{count_text(report.num_parameters)} parameters under Adam: {report.description}\n")
    rows = [
        (
            result.name,
            size_text(result.node_bytes),
            f"{result.bytes_per_parameter:.1f}",
            None if result.name == OUR_MEMORY or report.ratio is None else f"{report.ratio:.3f}",
            size_text(result.before_bytes),
        )
        for result in report.results
    ]
    print_table(("trained by", "memory a node", "bytes a parameter", f"{OUR_MEMORY} / it", "before the model"), rows)


def show_recovery(report: RecoveryReport, *, as_json: bool) -> None:
    """Print what `bench recovery` found out."""
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    peer, coordinator = report.peer, report.coordinator
    shard = "" if report.shard_seconds is None else f", {short_time_text(report.shard_seconds)} of them a shard"
    spares = f" and {report.num_spares} spares" if report.num_spares else ""
    whose = "ours alone" if peer is None else f"PyTorch {peer.torch}"
    print(f"{_ranks(report.world_size)}{spares}; {report.mpi}; {whose}")
    print(f"{report.trained}: {short_time_text(report.step_seconds)} a step{shard}; each kill {report.times} times\n")
    rows: list[tuple[object, ...]] = []
    for kind in report.ranks:
        others = len(kind.kills) - kind.num_in_place
        how = " and ".join(
            f"{count} {what}" for count, what in ((kind.num_in_place, "in place"), (others, "started again")) if count
        )
        caught_up = kind.caught_up.median_seconds if others else None
        whole = kind.whole.median_seconds if kind.whole is not None else None
        times = (*_spread(kind.seconds), kind.beyond_shards.p95_seconds, caught_up, whole)
        rows.append((kind.killed, "ddp_bp", how, *times))
    if coordinator is not None:
        text = "nobody waits"
        rows.append(("the coordinator", "ddp_bp", text, *_spread(coordinator.seconds), None, None, None))
    if peer is not None:
        text, caught_up = "all started again", peer.caught_up.median_seconds
        rows.append(
            ("a worker", "torchrun", text, *_spread(peer.seconds), None, caught_up, peer.seconds.median_seconds)
        )
    columns = ("killed", "trained by", "how it goes on", "median", "p95", "largest")
    print_table(
        (*columns, "p95 beyond its shards", "as far as before", "as many as before"),
        [tuple(short_time_text(cell) if isinstance(cell, float) else cell for cell in row) for row in rows],
    )
    if coordinator is not None:
        print(f"\nwhile the coordinator is away, steps take {coordinator.slowdown:.3g} times as long")
    if peer is not None:
        print(f"PyTorch's steps take {short_time_text(peer.step_seconds)}")


def _spread(spread: Spread) -> tuple[float, float, float]:
    return spread.median_seconds, spread.p95_seconds, spread.largest_seconds


def binary_size_text(num_bytes: int) -> str:
    """A number of bytes in the unit that it is a whole number of: `64 KiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes % size == 0:
            return f"{num_bytes // size} {unit}"
    return f"{num_bytes} B"


def short_time_text(seconds: float) -> str:
    """A duration below a few seconds, in three digits: `2.31 us`."""
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _ranks(count: int) -> str:
    return f"{count} rank{'s' if count > 1 else ''}"


def _peers(mpi: str, torch: str | None) -> str:
    return f"{mpi}; {_NO_TORCH if torch is None else f'PyTorch {torch}'}"
