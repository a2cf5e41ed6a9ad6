"""Which hosts are looked at before a start, and what becomes of those that are not fit, by answers that are made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_cli_host_preflight import FOUND, OLDER, OWN, like_own

from ddp_bp.cli import on_hosts as subject
from ddp_bp.cli.host_check import HostReport
from ddp_bp.cli.host_preflight import Answers
from ddp_bp.cli.hosts import Host
from ddp_bp.cli.job_start import JobStart
from ddp_bp.cli.launcher import Launcher
from ddp_bp.cli.on_hosts import HostCheck
from ddp_bp.cli.placement import Placement
from ddp_bp.errors import HostError
from ddp_bp.recipes import load_recipe
from ddp_bp.worker.rundir import RunDirectory


class Cluster:
    """Hosts `here`, `b`, `c` and `d`, and a job on the first of those that are offered."""

    def __init__(self, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reports: dict[str, HostReport] = {name: like_own(name) for name in "bcd"}
        self.without_run_directory: set[str] = set()
        self.looked_for: list[Sequence[str]] = []
        self.said: list[str] = []
        self._run_dir = run_dir
        for module in ("on_hosts", "placement"):
            monkeypatch.setattr(f"ddp_bp.cli.{module}.is_this_host", lambda name: name == "here")
        monkeypatch.setattr("ddp_bp.cli.host_preflight.own_interfaces", lambda _: [])
        monkeypatch.setattr(subject, "report_host", lambda: OWN)
        monkeypatch.setattr(subject, "ask_hosts", self._ask)

    def _ask(self, placement: Placement, _: object, __: object, paths: Sequence[str], *___: object, **____: object):
        self.looked_for.append(paths)
        probes = [path for path in paths if Path(path).parent == self._run_dir]
        answers = Answers()
        for name in placement.remote:
            if name in self.reports:
                missing = [*self.reports[name].missing, *(probes if name in self.without_run_directory else [])]
                answers.reports[name] = msgspec.structs.replace(self.reports[name], missing=missing)
            else:
                answers.silent[name] = "expected an answer, got none"
        return answers

    def check(self, *, is_wanted: bool = True) -> HostCheck:
        class Prepared:
            recipe, base = load_recipe("digits")
            run = RunDirectory(self._run_dir)

        prepared: Any = Prepared()
        return HostCheck(prepared, FOUND, self.said.append, is_wanted=is_wanted)

    def start(self, *offered: str, num_workers: int) -> JobStart:
        hosts = tuple(Host(name, 1) for name in offered)
        placement = Placement(0, (), hosts, "--hosts").resized(num_workers)
        return JobStart(
            recipe="digits",
            overrides=(),
            num_workers=num_workers,
            binds=False,
            run_dir=self._run_dir,
            total_steps=10,
            grace_seconds=1.0,
            silence_seconds=1.0,
            launcher=Launcher("mpirun", "Open MPI 5"),
            kernels=None,
            placement=placement,
            most_workers=9,
        )


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(tmp_path, monkeypatch)


def hosts_of(start: JobStart) -> list[str]:
    return [host.name for host in start.placement.hosts]


OTHER_NUMPY = msgspec.structs.replace(OWN, hostname="c", software={"Python": "3.11.2", "NumPy": "2.3.0"})


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        (None, "c: expected an answer, got none"),
        (OTHER_NUMPY, "c: expected NumPy 2.4.0, as on this host, got 2.3.0"),
        # What hosts agree on cannot change any more.
        (msgspec.structs.replace(OLDER, hostname="c"), "c: expected SkylakeX kernels of BLAS"),
        (like_own("c", missing=["/data"]), "c: expected /data, as on this host, got no such file"),
    ],
)
def test_a_host_that_comes_later_is_looked_at_as_the_first_ones_were(
    cluster: Cluster, report: HostReport | None, problem: str
) -> None:
    check, grown = cluster.check(), cluster.start("here", "b", "c", num_workers=3)
    check.first_start(cluster.start("here", "b", "c", num_workers=2))
    good = cluster.reports.pop("c")
    if report is not None:
        cluster.reports["c"] = report
    with pytest.raises(HostError) as caught:
        check.next_start(grown)
    assert [line.startswith(problem) for line in caught.value.problems] == [True], caught.value.problems
    cluster.reports["c"] = good
    for _ in range(2):
        assert hosts_of(check.next_start(grown)) == ["here", "b", "c"]
    # Once it has been found fit, it is a host like the others: one that may be lost.
    del cluster.reports["c"]
    assert hosts_of(check.next_start(grown)) == ["here", "b"]
    assert cluster.said == [
        "ddp-bp: host c is left out: expected an answer, got none",
        "ddp-bp: hosts: here (1 rank), b (1 rank)",
    ]


def test_no_host_is_looked_at_without_preflight(cluster: Cluster) -> None:
    check = cluster.check(is_wanted=False)
    cluster.reports["c"] = OTHER_NUMPY
    check.first_start(cluster.start("here", "b", "c", num_workers=2))
    assert hosts_of(check.next_start(cluster.start("here", "b", "c", num_workers=3))) == ["here", "b", "c"]


@pytest.mark.parametrize("host", ["b", "c"])
def test_the_host_of_rank_0_must_see_the_run_directory_whatever_is_due(cluster: Cluster, host: str) -> None:
    """A checkpoint to read there may be taken at any time: to replace dead ranks, or for another number of them."""
    cluster.without_run_directory = {host}
    start = cluster.start("b", "c", num_workers=2)
    if host == "c":
        assert hosts_of(cluster.check().first_start(start)) == ["b", "c"]
        return
    with pytest.raises(HostError, match=f"b: expected to see the run directory {cluster._run_dir}, since rank 0"):
        cluster.check().first_start(start)
    cluster.check().first_start(cluster.start("here", "b", num_workers=2))
    assert cluster.looked_for == [cluster.looked_for[0], []], "here it is"


def test_when_the_host_of_rank_0_is_lost_another_one_that_sees_the_run_directory_takes_it(cluster: Cluster) -> None:
    check, start = cluster.check(), cluster.start("b", "c", "d", num_workers=3)
    check.first_start(start)
    cluster.without_run_directory = {"c"}
    del cluster.reports["b"]
    assert hosts_of(check.next_start(start)) == ["d"]
    assert [line.partition(": expected ")[0] for line in cluster.said[:2]] == [
        "ddp-bp: host b is left out",
        "ddp-bp: host c is left out",
    ]
    cluster.without_run_directory = {"c", "d"}
    with pytest.raises(HostError, match="d: expected to see the run directory"):
        check.next_start(start)


def test_spares_are_on_the_last_host_and_so_move_no_rank_to_another(cluster: Cluster) -> None:
    start = cluster.start("b", "c", num_workers=2)
    assert start.hostfile() == "b slots=1\nc slots=1\n"
    launcher = Launcher("mpirun", "Open MPI 5", reports_deaths=True)
    assert replace(start, launcher=launcher, survives=True, num_spares=2).hostfile() == "b slots=1\nc slots=3\n"
