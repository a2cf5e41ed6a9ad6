"""What `ddp-bp bench` accepts, and what it prints."""

from __future__ import annotations

import json

import click
import msgspec
import pytest

from ddp_bp.bench.exchange import Contender, ExchangeReport, SizeResult, UpdateResult
from ddp_bp.bench.memory import MemoryReport, MemoryResult
from ddp_bp.bench.protection import ModelProtection, ProtectionReport
from ddp_bp.bench.recovery import (
    CoordinatorKills,
    PeerKills,
    RankKill,
    RecoveryReport,
    Spread,
    summed_up,
)
from ddp_bp.bench.scaling import ModelScaling, RanksResult, ScalingReport
from ddp_bp.bench.shards import ModelShards, ShardsReport, ShardsResult
from ddp_bp.bench.training import DdpResult, ModelResult, ProductsResult, TrainingReport
from ddp_bp.cli.bench_options import byte_size, model_names, shard_numbers, vector_sizes
from ddp_bp.cli.bench_output import (
    binary_size_text,
    short_time_text,
    show_exchange,
    show_memory,
    show_protection,
    show_recovery,
    show_scaling,
    show_shards,
    show_training,
)
from ddp_bp.cli.bench_recovery import kind_names


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("1", 1), ("4096", 4096), ("12 B", 12), ("4KiB", 4096), ("1MiB", 2**20), (" 2 gib ", 2**31)],
)
def test_sizes_are_in_binary_units(text: str, num_bytes: int) -> None:
    assert byte_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "0", "0KiB", "-4", "1.5MiB", "4KB", "MiB", "4 5"])
def test_other_sizes_are_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(click.BadParameter, match="expected a size such as 4096, 64KiB or 1MiB, got "):
        byte_size(text)


def test_lists_are_divided_by_commas() -> None:
    assert vector_sizes("4KiB, 64,1MiB") == (4096, 64, 2**20)
    assert model_names("large, tiny") == ("large", "tiny")
    assert shard_numbers("4, 2") == (4, 2)
    with pytest.raises(click.BadParameter, match="numbers of shards such as 2,4, got '0'"):
        shard_numbers("2,0")
    with pytest.raises(click.BadParameter, match="multiple of 4 bytes, got 6"):
        vector_sizes("4,6")
    with pytest.raises(click.BadParameter, match="'midle'; there is tiny, middle, large; did you mean 'middle'"):
        model_names("tiny,midle")


def test_short_times_and_binary_sizes_as_text() -> None:
    assert [short_time_text(t) for t in (2.3456e-6, 999.4e-6, 0.9996e-3, 0.0123, 0.99951, 12.3456)] == [
        *("2.35 us", "999 us", "1 ms", "12.3 ms", "1 s", "12.3 s"),
    ]
    assert [binary_size_text(n) for n in (12, 4096, 3 * 2**20, 2**30, 2**20 + 4)] == [
        *("12 B", "4 KiB", "3 MiB", "1 GiB", "1048580 B"),
    ]


EXCHANGE = ExchangeReport(
    world_size=2,
    num_nodes=1,
    repeats=50,
    mpi="Some MPI",
    torch="2.0",
    cache_bytes=32 * 10**6,
    copy_bytes_per_second=20e9,
    sizes=[
        SizeResult(
            65536,
            55,
            "ring",
            [
                Contender("ddp_bp", 12e-6, 1.0, 5.4e9, 0.54),
                Contender("gloo", 1.2e-3, 0.01, 5.4e7, 0.0054),
                Contender("MPI", 24e-6, 0.5, 2.7e9, 0.27),
            ],
        )
    ],
    update=UpdateResult(20_000_000, 640_000_000, 0.04, 0.8),
)
TRAINING = TrainingReport(
    4,
    15,
    "Some MPI",
    "2.0",
    [
        ModelResult(
            "tiny",
            "4-3, batch 2 a rank",
            15,
            1.5e-3,
            ProductsResult(1e-3, 48e9, 0.67, 4.5),
            DdpResult(25, 4.5e-3, 3.0),
        )
    ],
)
MEMORY = MemoryReport(
    4,
    1,
    "Some MPI",
    "2.0",
    "5-5, batch 4 a rank",
    30_000_000,
    [MemoryResult("ddp_bp", 840_000_000, 28.0, 10**9), MemoryResult("PyTorch DDP", 1_920_000_000, 64.0, 10**9)],
    0.4375,
)
PROTECTION = ProtectionReport(
    2, 60, "Some MPI", True, [ModelProtection("tiny", "4-3, batch 2 a rank", 1.5e-3, 0.0124, -0.001, 0.009, 0.004)]
)
SHARDS = ShardsReport(
    2, 15, "Some MPI", [ModelShards("tiny", "4-3, batch 2 a rank", [ShardsResult(8, 1.5e-3, 1.25, 1.2)])]
)
SCALING = ScalingReport(
    1,
    1,
    15,
    "Some MPI",
    [ModelScaling("tiny", "4-3, batch 2 a rank", [RanksResult(1, 1e-3, 2000.0, 1.0, 10**8, 0.25)])],
)


RECOVERY = RecoveryReport(
    world_size=4,
    num_spares=0,
    times=10,
    mpi="Some MPI",
    trained="tiny: 4-3, batch 2 a rank",
    recovery="auto",
    step_seconds=0.012,
    shard_seconds=0.005,
    ranks=[
        summed_up("rank 0", 10 * [RankKill([0], True, 0.07, 0.07, 0.01, 1, 0.005, 2.0)]),
        summed_up("two", [RankKill([1, 2], True, 0.1, 0.1, 0.01, 2, 0.02), RankKill([0, 1], False, 3.0, 4.0, 0.01)]),
    ],
    coordinator=CoordinatorKills(Spread(0.9, 1.0, 1.1), 1.25, []),
    peer=PeerKills("2.0", 0.02, Spread(6.0, 7.0, 8.0), Spread(6.5, 7.5, 8.5), []),
)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_the_table_of_the_exchange(capsys: pytest.CaptureFixture[str]) -> None:
    show_exchange(EXCHANGE, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 ranks; Some MPI; PyTorch 2.0; medians of 50"
    assert lines[1] == "copying, all ranks at once: 20.0 GB/s read and written; last-level cache 32.0 MB"
    assert cells(lines[3]) == ["size", "sum by", "time", "ddp_bp / it", "bus bandwidth", "of copying"]
    assert cells(lines[4]) == ["64 KiB", "ddp_bp", "12 us", "-", "5.4 GB/s", "54.0%"]
    assert cells(lines[5]) == ["64 KiB", "gloo", "1.2 ms", "0.01", "54.0 MB/s", "0.5%"]
    assert cells(lines[6]) == ["64 KiB", "MPI (ring)", "24 us", "0.5", "2.7 GB/s", "27.0%"]
    assert lines[-1] == (
        "reduce + Adam, 20 M parameters: 40 ms for 640.0 MB that must move, 80.0% of the bandwidth of copying"
    )


def test_the_table_of_training(capsys: pytest.CaptureFixture[str]) -> None:
    show_training(TRAINING, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 ranks; Some MPI; PyTorch 2.0; medians of 15 blocks of steps"
    heads = ["model", "ms a step", "PyTorch DDP", "times as fast", "its best bucket"]
    assert cells(lines[2]) == [*heads, "products alone", "Gflop/s a rank", "at most times as fast"]
    assert cells(lines[3]) == ["tiny", "4-3, batch 2 a rank", "1.5", "4.5", "3", "25 MB", "1", "48", "4.5"]


def test_without_pytorch_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    alone = ModelResult("tiny", "4-3, batch 2 a rank", 15, 1.5e-3, ProductsResult(1e-3, 48e9, 0.67, None), None)
    show_training(TrainingReport(2, 15, "Some MPI", None, [alone]), as_json=False)
    out = capsys.readouterr().out
    assert "PyTorch is not installed on all ranks: ours alone" in out
    assert cells(out.splitlines()[3]) == ["tiny", "4-3, batch 2 a rank", "1.5", "-", "-", "-", "1", "48", "-"]


def test_the_table_of_shards(capsys: pytest.CaptureFixture[str]) -> None:
    show_shards(SHARDS, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 ranks; Some MPI; medians of 15 blocks of steps"
    assert cells(lines[2]) == ["model", "shards", "ms a step", "times as long", "products alone"]
    assert cells(lines[3]) == ["tiny", "4-3, batch 2 a rank", "8", "1.5", "1.250", "1.200"]


def test_the_table_of_protection(capsys: pytest.CaptureFixture[str]) -> None:
    show_protection(PROTECTION, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 ranks; Some MPI; medians of 60 blocks of steps"
    assert lines[1] == "others go on after a death; shares are of a step without protection"
    assert cells(lines[3]) == ["model", "ms a step", "protection", "marks", "is it finite", "ledger"]
    assert cells(lines[4]) == ["tiny", "4-3, batch 2 a rank", "1.5", "1.2 %", "-0.1 %", "0.9 %", "0.4 %"]
    show_protection(msgspec.structs.replace(PROTECTION, goes_on=False), as_json=False)
    assert "nobody goes on after a death here: nothing is marked" in capsys.readouterr().out


def test_the_table_of_scaling(capsys: pytest.CaptureFixture[str]) -> None:
    show_scaling(SCALING, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 to 1 rank; Some MPI; medians of 15 blocks of steps"
    columns = ["model", "ranks", "ms a step", "samples/s", "efficiency", "memory a node", "faults a step"]
    assert cells(lines[2]) == columns
    assert cells(lines[3]) == ["tiny", "4-3, batch 2 a rank", "1", "1", "2 k", "1.000", "100.0 MB", "0.25"]


def test_the_table_of_memory(capsys: pytest.CaptureFixture[str]) -> None:
    show_memory(MEMORY, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["4 ranks; Some MPI; PyTorch 2.0", "30 M parameters under Adam: 5-5, batch 4 a rank"]
    columns = ["trained by", "memory a node", "bytes a parameter", "ddp_bp / it", "before the model"]
    assert cells(lines[3]) == columns
    assert cells(lines[4]) == ["ddp_bp", "840.0 MB", "28.0", "-", "1.0 GB"]
    assert cells(lines[5]) == ["PyTorch DDP", "1.9 GB", "64.0", "0.438", "1.0 GB"]


def test_the_table_of_recovery(capsys: pytest.CaptureFixture[str]) -> None:
    show_recovery(RECOVERY, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "4 ranks; Some MPI; PyTorch 2.0",
        "tiny: 4-3, batch 2 a rank: 12 ms a step, 5 ms of them a shard; each kill 10 times",
    ]
    columns = ["killed", "trained by", "how it goes on", "median", "p95", "largest"]
    assert cells(lines[3]) == [*columns, "p95 beyond its shards", "as far as before", "as many as before"]
    assert cells(lines[4]) == ["rank 0", "ddp_bp", "10 in place", "70 ms", "70 ms", "70 ms", "65 ms", "-", "2 s"]
    mixed = ["1 in place and 1 started again", "1.55 s", "3 s", "3 s", "3 s", "2.05 s", "-"]
    assert cells(lines[5]) == ["two", "ddp_bp", *mixed]
    assert cells(lines[6]) == ["the coordinator", "ddp_bp", "nobody waits", "900 ms", "1 s", "1.1 s", "-", "-", "-"]
    assert cells(lines[7]) == ["a worker", "torchrun", "all started again", "6 s", "7 s", "8 s", "-", "6.5 s", "6 s"]
    assert lines[-2:] == [
        "while the coordinator is away, steps take 1.25 times as long",
        "PyTorch's steps take 20 ms",
    ]


def test_names_of_what_is_killed() -> None:
    assert kind_names("two, rank,two") == ("two", "rank")
    with pytest.raises(click.BadParameter, match="there is no 'ranks'; there is rank, rank-0, two, coordinator"):
        kind_names("rank-0,ranks")


@pytest.mark.parametrize(
    ("show", "report"),
    [
        (show_exchange, EXCHANGE),
        (show_training, TRAINING),
        (show_shards, SHARDS),
        (show_protection, PROTECTION),
        (show_memory, MEMORY),
        (show_recovery, RECOVERY),
        (show_scaling, SCALING),
    ],
)
def test_json_has_all_that_was_found_out(capsys: pytest.CaptureFixture[str], show, report) -> None:
    show(report, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["mpi"] == "Some MPI"
    assert found.keys() == set(report.__struct_fields__)
