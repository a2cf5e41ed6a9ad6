"""What `ddp-bp chaos` refuses before anything starts, and what it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from ddp_bp.chaos.record import Done, JobRecord
from ddp_bp.chaos.usage import RankUsage, Usage
from ddp_bp.cli.chaos import chaos, fault_kinds
from ddp_bp.cli.chaos_output import ChaosReport, JobResult, show_chaos
from ddp_bp.errors import InputError, RecipeError

UNDISTURBED = {"steps": 63, "samples": 4314, "weights_sha256": "ab" * 32, "ledger_sha256": "cd" * 32}


def call(*arguments: object) -> int:
    code: int = chaos.main(list(map(str, arguments)), standalone_mode=False)
    return code


def test_kinds_are_named_once_and_in_one_order() -> None:
    assert fault_kinds("stop, kill,stop") == ("kill", "stop")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--faults", "kill,burn"], "expected some of kill, kill-two, .*, got 'burn'"),
        (["--at", "agree", "--every", 1], "--at says what happens and when"),
        (["--at", "agree", "--faults", "kill"], "--at says what happens and when"),
        (["--at", "recovery", "-n", 2], "--at recovery: expected at least -n 3"),
        (["--at", "agree", "-n", 1], "--at agree: expected at least -n 2"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: list[object], message: str) -> None:
    with pytest.raises(click.UsageError, match=message):
        call("digits", *options)


def test_a_folder_with_something_in_it_and_a_wrong_recipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--run-dir .*: expected a new or an empty folder"):
        call("digits", "--run-dir", tmp_path)
    with pytest.raises(RecipeError, match=r"train.epoch: unknown key"):
        call("digits", "--run-dir", tmp_path / "new", "--set", "train.epoch=1")
    assert not (tmp_path / "new").exists()


def report() -> ChaosReport:
    record = JobRecord(0, 2.0, num_starts=1, num_in_place=2, num_restarts=1)
    record.done.append(Done(0.5, "kill", "rank 2 (process 17, forward)", [2], 11, ["forward"]))
    record.usage.append(RankUsage(0, Usage(70_000_000, 30), Usage(80_000_000, 33)))
    jobs = [
        JobResult(7, Path("runs/seed-7"), record, 0.42, []),
        JobResult(8, Path("runs/seed-8"), JobRecord(), None, ["weights_sha256: expected ab, as undisturbed, got ba"]),
    ]
    return ChaosReport("digits", 4, UNDISTURBED, 100.0, jobs)


def test_the_table_has_a_line_for_each_seed_and_says_what_was_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    show_chaos(report(), as_json=False)
    _, _, first, second, *rest = capsys.readouterr().out.splitlines()
    assert first.split() == ["7", "yes", "1", "2", "1", "1", "42%", "80.0", "MB,", "33", "files", "runs/seed-7"]
    assert second.split()[:3] == ["8", "NO", "0"]
    assert rest[0] == "seed 8: weights_sha256: expected ab, as undisturbed, got ba"
    assert "1 of 2 survived" in rest[2]


def test_json_has_the_same_and_more(capsys: pytest.CaptureFixture[str]) -> None:
    show_chaos(report(), as_json=True)
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert shown["all_survived"] is False and [job["survived"] for job in shown["jobs"]] == [True, False]
    assert shown["jobs"][0]["done"][0]["doing"] == ["forward"]
    assert shown["jobs"][0]["usage"][0]["last"]["num_descriptors"] == 33
    assert shown["undisturbed"]["weights_sha256"] == UNDISTURBED["weights_sha256"]
