"""`ddp-bp profile` as a command: in one process, under mpirun, under a launcher of one's own, and when it fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support import ddp_bp, end_tree, processes_of, start, wait_until

pytestmark = pytest.mark.mpi

DIGITS = ("profile", "digits", "--steps", "2")


def operations(result: dict) -> dict[str, int]:
    return {row["name"]: row["calls"] for row in result["operations"]}


@pytest.mark.parametrize("size", [1, 2])
def test_one_json_document_a_trace_and_a_drawing(run_ddp_bp, tmp_path: Path, size: int) -> None:
    if shutil.which("dot") is None:
        pytest.skip("needs Graphviz (Debian: apt-get install graphviz)")
    files = ("--trace", tmp_path / "trace.json", "--graph", tmp_path / "graph.svg")
    result = run_ddp_bp(*DIGITS, "-n", size, "--json", *files, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert (report["recipe"], report["steps"], report["world_size"]) == ("digits", 2, size)
    # digits has 4 shards, whatever the number of ranks.
    assert operations(report) == {"linear": 24, "relu": 16, "dropout": 16, "cross_entropy": 8}
    assert report["trace"] == str(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_bytes())
    assert {event["pid"] for event in trace["traceEvents"]} == set(range(size))
    assert (tmp_path / "graph.svg").read_text().rstrip().endswith("</svg>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.svg", "trace.json"]


def test_the_tables_say_what_was_asked_for(run_ddp_bp, tmp_path: Path) -> None:
    result = run_ddp_bp(*DIGITS, "--set", "model.options={hidden=[32]}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = {line.split("  ")[0]: line for line in map(str.strip, result.stdout.splitlines())}
    assert lines["operation"].split() == [
        "operation", "calls", "forward", "backward", "ratio", "FLOP", "GFLOP/s", "bytes", "gradients",
    ]  # fmt: skip
    assert lines["linear"].endswith("2.5 of 3")
    assert lines["0 Linear"].endswith("2 of 3")
    assert lines["2 Linear"].endswith("3 of 3")
    assert "gradient not computed: input 0 (16, 64) of linear in 0" in result.stdout
    assert "in the median step, backward takes" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_under_a_launcher_of_the_users_own_rank_0_shows_it(mpirun, tmp_path: Path) -> None:
    result = mpirun(2, ["-m", "ddp_bp", *DIGITS, "--json"], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["world_size"] == 2


def test_without_graphviz_the_graph_is_dot_and_it_says_so(run_ddp_bp, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    result = run_ddp_bp(*DIGITS, "--graph", tmp_path / "graph.svg", PATH=str(tmp_path / "bin"))
    assert result.returncode == 0
    assert "needs Graphviz" in result.stderr
    assert f"wrote {tmp_path / 'graph.dot'} instead" in result.stderr
    assert f"graph: {tmp_path / 'graph.dot'}" in result.stdout
    assert (tmp_path / "graph.dot").read_text().startswith("digraph ")
    assert not (tmp_path / "graph.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--graph", "graph.png"), "expected a name that ends in .svg or .dot"),
        (("--trace", "nowhere/trace.json"), "there is no folder nowhere"),
        (("--set", "model.name=mpl", "-n", "2"), "did you mean 'mlp'"),
        (("--steps", "0"), "0 is not in the range x>=1"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_starts(
    run_ddp_bp, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run_ddp_bp("profile", "digits", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_raises_ends_it_with_its_error_once_and_first(run_ddp_bp, slow_recipe: Path) -> None:
    options = ("--set", "model.factory=job_models:raising", "--set", "model.options.num_calls=2")
    result = run_ddp_bp("profile", slow_recipe, "-n", 2, *options)
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines[0].startswith("ddp-bp: rank 1 failed at step ")
    assert "ArithmeticError: the model of this rank is broken" in lines[0]
    assert result.stderr.count("Traceback") == 1
    assert lines[-1] == "ddp-bp: profiling did not finish; the first error above says why"
    assert result.stdout == ""


def test_a_signal_ends_it_and_everything_that_it_started(slow_recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    process = start(ddp_bp("profile", slow_recipe, "-n", 2, "--steps", 1000), TMPDIR=str(folder))
    try:
        wait_until(lambda: len(processes_of(folder)) >= 3 or process.poll() is not None, "mpirun and its ranks")
        process.terminate()
        stdout, stderr = process.communicate(timeout=30)
    finally:
        end_tree(process)
    assert process.returncode == 143, stderr
    assert "did not finish" not in stderr
    assert stdout == ""
    assert processes_of(folder) == []
    assert list(folder.glob("ddp-bp-profile-*")) == []
