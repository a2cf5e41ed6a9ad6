"""`ddp-bp bench` as a command: one small real run of each, with PyTorch and without. Nothing here is about speed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from support import REPOSITORY, ddp_bp, leftovers, processes_of, wait_until

from ddp_bp.bench.allreduce import ALGORITHMS

pytestmark = pytest.mark.mpi

EXCHANGE = ("bench", "exchange", "--sizes", "4KiB,100KiB", "--repeats", 2, "--parameters", 5000, "--cache", "64KiB")
TRAINING = ("bench", "training", "--models", "tiny", "--repeats", 1)
RECOVERY = ("bench", "recovery", "--model", "tiny", "--times", 1)
SCALING = ("bench", "scaling", "--models", "tiny", "--repeats", 1)


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which importing PyTorch fails, as where it is not installed."""
    (tmp_path / "torch.py").write_text("raise ImportError('no PyTorch here')\n")
    return {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}


def ways(report: dict) -> list[list[str]]:
    return [[contender["name"] for contender in size["contenders"]] for size in report["sizes"]]


def test_exchange(run_ddp_bp, without_torch: dict[str, str]) -> None:
    result = run_ddp_bp(*EXCHANGE, "-n", 3, "--json", **without_torch)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert (report["world_size"], report["num_nodes"], report["repeats"]) == (3, 1, 2)
    assert (report["torch"], report["cache_bytes"]) == (None, 65536)
    assert [size["num_bytes"] for size in report["sizes"]] == [4096, 102400]
    assert ways(report) == [["ddp_bp", "MPI"]] * 2
    assert report["update"]["bytes_moved"] == 5000 * 4 * 9
    assert {size["algorithm"] for size in report["sizes"]} <= ALGORITHMS.keys()


@pytest.mark.parity
def test_exchange_beside_gloo(run_ddp_bp) -> None:
    result = run_ddp_bp(*EXCHANGE, "--allreduce", "default", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["world_size"] == 2, "two are the default"
    assert report["torch"].startswith("2.")
    assert ways(report) == [["ddp_bp", "MPI", "gloo"]] * 2
    assert {size["algorithm"] for size in report["sizes"]} == {"its own choice"}


@pytest.mark.parity
def test_training_beside_ddp(run_ddp_bp) -> None:
    result = run_ddp_bp(*TRAINING, "-n", 2, "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["world_size"] == 2
    [model] = report["models"]
    assert model["name"] == "tiny"
    assert model["ddp"]["bucket_mb"] in (1, 25, 100)
    assert model["ddp"]["seconds_per_step"] > 0


def test_training_without_pytorch_says_so(run_ddp_bp, without_torch: dict[str, str]) -> None:
    result = run_ddp_bp(*TRAINING, **without_torch)
    assert result.returncode == 0, result.stderr
    assert "PyTorch is not installed on all ranks: ours alone" in result.stdout


@pytest.mark.parity
def test_four_ranks_take_less_than_half_of_the_memory_of_ddp(run_ddp_bp) -> None:
    """Four gradients, weights and two averages a node are 28 bytes a parameter; DDP's 16 a rank 64, and more."""
    result = run_ddp_bp("bench", "memory", "-n", 4, "--parameters", 10_000_000, "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    ours, theirs = report["results"]
    assert ours["bytes_per_parameter"] == pytest.approx(28, abs=4)
    assert theirs["bytes_per_parameter"] > 60
    assert report["ratio"] <= 0.5


def test_shards(run_ddp_bp) -> None:
    result = run_ddp_bp("bench", "shards", "--models", "tiny", "--repeats", 1, "--shards-per-rank", "2", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["world_size"] == 2
    [model] = report["models"]
    assert [shards["num_shards"] for shards in model["shards"]] == [2, 4]


def test_scaling_under_a_launcher_of_the_users_own(mpirun) -> None:
    result = mpirun(3, ["-m", "ddp_bp", *SCALING, "--json"])
    assert result.returncode == 0, result.stderr
    [model] = json.loads(result.stdout)["models"]
    assert [ranks["num_ranks"] for ranks in model["ranks"]] == [1, 2, 3]
    assert model["ranks"][0]["efficiency"] == 1
    memory = [ranks["node_bytes"] for ranks in model["ranks"]]
    assert memory == sorted(memory)


@pytest.mark.ulfm
def test_recovery(run_ddp_bp) -> None:
    before = leftovers()
    kinds = "rank,two,coordinator"
    result = run_ddp_bp(*RECOVERY, "-n", 3, "--kill", kinds, "--spares", 1, "--no-peer", "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert (report["world_size"], report["times"], report["recovery"], report["peer"]) == (3, 1, "auto", None)
    assert report["trained"] == "tiny: 64-32-10, batch 32 a rank"
    for kind, num_killed in zip(report["ranks"], (1, 2), strict=True):
        [kill] = kind["kills"]
        assert (kind["num_in_place"], kill["in_place"], len(kill["ranks"])) == (1, True, num_killed)
        assert 0 < kill["seconds"] == kill["caught_up_seconds"] == kind["seconds"]["p95_seconds"] < 10
        assert kind["beyond_shards"]["p95_seconds"] == kill["seconds"] - kill["recomputed_seconds"]
        assert 0 < kill["step_seconds"] < 1
    one, two = (kind["kills"][0] for kind in report["ranks"])
    assert one["whole_seconds"] == one["seconds"], "the spare is in the very step"
    assert two["seconds"] < two["whole_seconds"] < 30, "one spare is not enough, so that others were started"
    [kill] = report["coordinator"]["kills"]
    assert 0 < kill["seconds"] < 20 and 0 < kill["step_seconds_meanwhile"] < 1
    assert_nothing_is_left(before)


@pytest.mark.parity
def test_recovery_by_starting_again_beside_torchrun(run_ddp_bp) -> None:
    before = leftovers()
    options = ("--kill", "rank", "--recovery", "restart", "--json")
    result = run_ddp_bp(*RECOVERY, "-n", 2, *options)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    [ranks], peer = report["ranks"], report["peer"]
    assert (report["coordinator"], ranks["num_in_place"]) == (None, 0)
    assert peer["torch"].startswith("2.") and peer["step_seconds"] > 0
    for [kill] in (ranks["kills"], peer["kills"]):
        assert not kill["in_place"]
        assert 0.2 < kill["seconds"] <= kill["caught_up_seconds"] < 60
    assert ranks["whole"] == ranks["seconds"]
    assert_nothing_is_left(before)


def test_recovery_of_a_recipe_ends_when_it_is_told_to(start_command) -> None:
    before = leftovers()
    process = start_command(ddp_bp("bench", "recovery", "--recipe", "digits", "-n", 2, "--kill", "rank-0"))
    ranks = wait_until(
        lambda: [p for p in processes_of(Path(tempfile.gettempdir())) if "worker" in p.cmdline()], "ranks"
    )
    assert any("digits" in rank.cmdline() for rank in ranks)
    process.terminate()
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (143, "", "")
    assert_nothing_is_left(before)


def assert_nothing_is_left(before: set[Path]) -> None:
    wait_until(lambda: not processes_of(Path(tempfile.gettempdir())), "all processes to end", 10)
    assert leftovers() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("exchange", "--sizes", "4KB"), "expected a size such as 4096, 64KiB or 1MiB, got '4KB'"),
        (("training", "--models", "tinny"), "did you mean 'tiny'?"),
        (("shards", "--shards-per-rank", "2,x"), "expected numbers of shards such as 2,4, got 'x'"),
        (("scaling", "-n", "0"), "0 is not in the range x>=1"),
        (("recovery", "--kill", "rank_0"), "did you mean 'rank-0'?"),
        (("recovery", "-n", "2"), "expected at least 3 workers, so that one is left"),
        (("recovery", "--recipe", "digit"), "unknown recipe (did you mean 'digits'?)"),
        (("recovery", "--set", "train.batch_sise=3"), "train.batch_sise"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_starts(
    run_ddp_bp, arguments: tuple[str, ...], message: str
) -> None:
    result = run_ddp_bp("bench", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stdout == ""
