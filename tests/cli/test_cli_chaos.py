"""What `ddp-bp chaos` refuses before anything starts, and what it shows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from ddp_bp.chaos.points import Round
from ddp_bp.chaos.record import Done, JobOrder, JobRecord
from ddp_bp.chaos.usage import Growth, RankUsage, Usage
from ddp_bp.cli.chaos import chaos, fault_kinds, points_named
from ddp_bp.cli.chaos_orders import Orders
from ddp_bp.cli.chaos_output import ChaosReport, JobResult, show_chaos
from ddp_bp.errors import InputError, RecipeError
from ddp_bp.worker.death import POINTS, Death, Point

UNDISTURBED = {"steps": 63, "samples": 4314, "weights_sha256": "ab" * 32, "ledger_sha256": "cd" * 32}


def call(*arguments: object) -> int:
    code: int = chaos.main(list(map(str, arguments)), standalone_mode=False)
    return code


def test_kinds_and_points_are_named_once_and_in_one_order() -> None:
    assert fault_kinds("stop, kill,stop") == ("kill", "stop")
    assert points_named("agree, forward,agree") == ("forward", "agree")
    assert points_named("all") == POINTS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--faults", "kill,burn"], "expected some of kill, kill-two, .*, got 'burn'"),
        (["--at", "agree", "--every", 1], "--at says what happens and when"),
        (["--at", "agree", "--faults", "kill"], "--at says what happens and when"),
        (["--at", "recovery", "-n", 2], "--at recovery: expected at least -n 3"),
        (["--at", "all", "-n", 2], "--at recovery: expected at least -n 3"),
        (["--at", "agree", "-n", 1], "--at agree: expected at least -n 2"),
        (["--at", "agree", "--disturbances", 3], "--at says what happens and when"),
        (["--at", "agree,lunch"], "expected some of forward, backward, .*, got 'lunch'"),
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


def orders(**overrides: str) -> Orders:
    given = tuple(f"{key.replace('__', '.')}={value}" for key, value in overrides.items())
    return Orders("digits", 8, given, binds=True, folder=Path("runs"), patience_seconds=9.0)


def settings_of(order: JobOrder) -> list[str]:
    return [word for before, word in itertools.pairwise(order.command) if before == "--set"]


def test_ranks_die_as_often_as_was_asked_for_in_as_few_jobs_as_that_takes() -> None:
    jobs = list(orders().dying(3, 7, ("agree", "checkpoint"), 100))
    assert [job.name for job in jobs] == ["agree-3", "agree-8", "checkpoint-3", "checkpoint-8"]
    assert [[one.seed for one in job.rounds] for job in jobs[:2]] == [[3, 4, 5, 6, 7], [8, 9]]
    assert settings_of(jobs[0]) == ["fault.respawn=false"]
    assert settings_of(jobs[2]) == ["fault.respawn=false", "checkpoint.every_steps=5"]


def test_what_the_user_sets_counts() -> None:
    (job,) = orders(fault__respawn="true").dying(0, 5, ("agree",), 100)
    assert settings_of(job) == ["fault.respawn=true"]
    first, second = orders().disturbed(3, 2, ("kill",), 1.0, 200)
    assert (first.name, second.seed, len(first.schedule)) == ("seed-3", 4, 200)
    assert settings_of(first) == ["fault.max_restarts=200"]


def test_ranks_that_were_spares_are_disturbed_as_well() -> None:
    (job,) = replace(orders(), num_spares=3).disturbed(0, 1, ("kill",), 1.0, 20)
    assert {rank for one in job.schedule for rank in one.order} == set(range(8 + 3))


def order(name: str, rounds: Sequence[Round] = ()) -> JobOrder:
    return JobOrder(name, [], Path("runs") / name, "", 9.0, int(name.rpartition("-")[2]), rounds=rounds)


def report() -> ChaosReport:
    record = JobRecord(0, 2.0, num_starts=1, num_in_place=2, num_restarts=1, growth=Growth(0.0123, 0, 7))
    record.done.append(Done(0.5, "kill", "rank 2 (process 17, forward)", [2], 11, ["forward"]))
    record.usage.append(RankUsage(0, Usage(70_000_000, 30), Usage(80_000_000, 33)))
    problem = "weights_sha256: expected ab, as undisturbed, got ba"
    jobs = [JobResult(order("seed-7"), record, 0.42, []), JobResult(order("seed-8"), JobRecord(), None, [problem])]
    return ChaosReport("digits", 4, UNDISTURBED, 100.0, jobs)


def test_the_table_has_a_line_for_each_job_and_says_what_was_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    show_chaos(report(), as_json=False)
    _, _, first, second, *rest = capsys.readouterr().out.splitlines()
    assert first.split() == [
        "seed-7",
        "yes",
        "1",
        "2",
        "1",
        "1",
        "42%",
        "80.0",
        "MB,",
        "33",
        "files",
        "+1.2%,",
        "+0",
        "files",
    ]
    assert second.split()[:3] == ["seed-8", "NO", "0"]
    assert rest[0] == "seed-8: weights_sha256: expected ab, as undisturbed, got ba"
    assert rest[2].startswith("1 of 2 survived")


def test_json_has_the_same_and_more(capsys: pytest.CaptureFixture[str]) -> None:
    show_chaos(report(), as_json=True)
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert shown["all_survived"] is False and [job["survived"] for job in shown["jobs"]] == [True, False]
    assert shown["jobs"][0]["done"][0]["doing"] == ["forward"]
    assert shown["jobs"][0]["usage"][0]["last"]["num_descriptors"] == 33
    assert shown["undisturbed"]["weights_sha256"] == UNDISTURBED["weights_sha256"]
    assert shown["jobs"][0]["growth"] == {"resident": 0.0123, "num_descriptors": 0, "num_compared": 7}
    assert shown["jobs"][0]["mean_seconds_between"] == 2.0 and shown["jobs"][1]["mean_seconds_between"] is None
    assert shown["points"] == []


def test_deaths_are_counted_by_point(capsys: pytest.CaptureFixture[str]) -> None:
    def job(point: Point, seed: int, num_done: int, *problems: str) -> JobResult:
        done = [Done(None, "death", "", [1], 5, [point])] * num_done
        rounds = [Round(seed + number, point, (Death(1, point, 5),)) for number in range(3)]
        return JobResult(order(f"{point}-{seed}", rounds), JobRecord(0, done=done), 1.0, list(problems))

    jobs = [job("agree", 0, 3), job("agree", 3, 3, "it hangs"), job("reduce", 0, 2)]
    told = ChaosReport("digits", 4, UNDISTURBED, 100.0, jobs)
    show_chaos(told, as_json=False)
    out = capsys.readouterr().out
    assert "\nagree      3 of 6" in out and "\nreduce     2 of 2; 1 did not take place\n" in out
    assert "\n5 of 8 deaths, in 2 of 3 jobs, survived: same weights" in out
    show_chaos(told, as_json=True)
    points = json.loads(capsys.readouterr().out)["points"]
    assert points[1] == {"point": "reduce", "asked_for": 3, "took_place": 2, "survived": 2}
