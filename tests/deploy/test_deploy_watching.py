"""A real Prometheus watches a real job with a slow rank and everything that alerts are for: each panel has data, each
alert fires, and not before its cause is there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from expressions import ALERTS, DASHBOARDS, RULES, of_dashboard, of_rules
from haste import in_haste
from prometheus import Prometheus, free_port, prometheus, why_not
from support import ddp_bp, end_tree, run_to_end, start, status_of, summary_of, wait_for_step, wait_until

pytestmark = [pytest.mark.mpi, pytest.mark.prometheus, pytest.mark.timeout(240)]

RECIPE = """
[model]
factory = "deploy_models:straggling"
options = { slow_rank = 1, hang = "HANG" }
[data]
name = "digits"
[train]
epochs = 100000
batch_size = 719
shards = 2
[checkpoint]
every_steps = 5
[fault]
hang_seconds = 0
"""


class Scene:
    """The job with the slow rank, two coordinators without ranks, and the Prometheus that watches them, and an address
    where there is nothing yet."""

    def __init__(self, folder: Path, server: Prometheus, job: str, lonely: str, orderly: str, later: str) -> None:
        self.folder, self.server = folder, server
        self.job, self.lonely, self.orderly, self.later = job, lonely, orderly, later

    def status(self) -> dict[str, Any]:
        """Of the job with the slow rank; empty while its coordinator does not answer."""
        return status_of(self.folder / "job") or {}

    def wait_for_alerts(self, *expected: tuple[str, str], timeout_seconds: float = 40) -> None:
        """Until exactly these alerts of these instances fire."""
        seen: list[set[tuple[str, str]]] = []

        def fire() -> bool:
            seen[:] = [self.server.alerts()]
            return seen[0] == set(expected)

        try:
            wait_until(fire, f"alerts {expected}", timeout_seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; firing at the end: {seen}") from None


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory):
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("watching")
    recipe = folder / "straggler.toml"
    recipe.write_text(RECIPE.replace("HANG", str(folder / "hang")))
    shutil.copy(Path(__file__).parent / "deploy_models.py", folder)
    commands = {
        "job": ddp_bp("train", recipe, "-n", 2),
        "lonely": ddp_bp("coordinator", recipe, "-n", 2),
        "orderly": ddp_bp("coordinator", "digits", "-n", 1, "--linger", 2),
    }
    ports = {name: free_port() for name in (*commands, "later")}
    (folder / "alerts.yml").write_text(in_haste(ALERTS.read_text()))
    shutil.copy(RULES, folder / "rules.yml")
    targets = [f"127.0.0.1:{port}" for port in ports.values()]
    config = (
        "global: { scrape_interval: 500ms, evaluation_interval: 500ms }\n"
        "rule_files: [rules.yml, alerts.yml]\n"
        f"scrape_configs: [{{ job_name: ddp_bp, static_configs: [{{ targets: {targets} }}] }}]\n"
    )
    started = []
    # Prometheus looks for the first time 5 s after its start.
    with prometheus(folder, config) as server:
        try:
            for name, command in commands.items():
                where = ["--run-dir", folder / name, "--set", f"coordinator.http_port={ports[name]}"]
                started.append(start([*command, *where]))
            wait_for_step(folder / "job", 1)
            for name in ("lonely", "orderly"):
                wait_until(lambda name=name: status_of(folder / name), f"the coordinator {name}")
            yield Scene(folder, server, *targets)
        finally:
            for process in started:
                end_tree(process)
                for stream in (process.stdout, process.stderr):
                    stream.close()


def wait_for_every_panel(server: Prometheus) -> None:
    """Until each query of each panel, and each recorded rule, gives data."""
    waiting = {
        f"{path.stem}: {panel}": query for path in DASHBOARDS for panel, query in of_dashboard(path).items()
    } | of_rules(RULES)
    assert len(waiting) > 60
    deadline = time.monotonic() + 60
    while waiting and time.monotonic() < deadline:
        waiting = {panel: query for panel, query in waiting.items() if not server.query(query)}
        time.sleep(0.2)
    assert not waiting


def test_every_panel_has_data(scene: Scene) -> None:
    wait_for_every_panel(scene.server)


def test_only_the_slow_rank_is_called_a_straggler(scene: Scene) -> None:
    without_ranks = [("DdpBpRanksMissing", instance) for instance in (scene.lonely, scene.orderly)]
    scene.wait_for_alerts(("DdpBpStraggler", scene.job), *without_ranks)
    ranks = [row["metric"]["rank"] for row in scene.server.query('ALERTS{alertname="DdpBpStraggler"}')]
    assert ranks == ["1"]


def test_a_disk_that_fills_is_noticed(scene: Scene) -> None:
    filler = scene.folder / "filler"
    free_bytes = shutil.disk_usage(scene.folder).free
    # Half a percent of the room within seconds is more than all of it within 4 hours.
    with filler.open("wb") as file:
        for part in range(1, 21):
            os.posix_fallocate(file.fileno(), 0, part * free_bytes // 4000)
            if ("DdpBpDiskFilling", scene.job) in scene.server.alerts():
                break
            time.sleep(0.5)
    try:
        wait_until(lambda: ("DdpBpDiskFilling", scene.job) in scene.server.alerts(), "DdpBpDiskFilling")
    finally:
        filler.unlink()


def test_a_job_without_checkpoints_and_then_without_steps_is_noticed(scene: Scene) -> None:
    job, hang, elsewhere = scene.folder / "job", scene.folder / "hang", scene.folder / "elsewhere"
    no_step, too_old, suspected = (
        (f"DdpBp{name}", scene.job) for name in ("NoStep", "CheckpointTooOld", "RankSuspected")
    )
    wanted = {no_step, too_old, suspected}
    wait_until(lambda: not wanted & scene.server.alerts(), "a job that is well")
    folder, broken_at = job / "checkpoints", time.time()
    folder.rename(elsewhere)
    folder.write_text("in the way of checkpoints\n")
    try:
        # With the third the newest checkpoint is older than two that were due.
        wait_until(lambda: scene.status().get("checkpoints", {}).get("failures", 0) >= 3, "checkpoints that fail")
        hung_at = time.time()
        hang.touch()
        wait_until(lambda: wanted <= scene.server.alerts(), "no step and no checkpoint for a while")
        active = scene.server.active_since()
        assert active[too_old] > broken_at and active[no_step] > hung_at
    finally:
        hang.unlink(missing_ok=True)
        folder.unlink()
        elsewhere.rename(folder)
    wait_until(lambda: not wanted & scene.server.alerts(), "that steps and checkpoints are there again")


def test_ranks_that_die_again_and_again_are_noticed(scene: Scene) -> None:
    alert = ("DdpBpRepeatedRecoveries", scene.job)

    def has_gone_on(num_deaths: int) -> dict | None:
        status = scene.status()
        went_on = status.get("ready") and status["recoveries"] + status["restarts"] == num_deaths
        return status if went_on else None

    for num_deaths in range(3):
        status = wait_until(lambda number=num_deaths: has_gone_on(number), f"going on after {num_deaths} deaths")
        assert alert not in scene.server.alerts()
        os.kill(max(rank["pid"] for rank in status["ranks"] if rank["connected"]), signal.SIGKILL)
    wait_until(lambda: alert in scene.server.alerts(), "that ranks die again and again")
    wait_until(lambda: has_gone_on(3), "going on after 3 deaths")
    wait_for_every_panel(scene.server)


def test_a_coordinator_that_is_killed_is_noticed(scene: Scene) -> None:
    pid = json.loads((scene.folder / "lonely/coordinator.json").read_bytes())["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: ("DdpBpCoordinatorDown", scene.lonely) in scene.server.alerts(), "DdpBpCoordinatorDown", 20)


def test_a_job_that_ends_well_is_seen_to_do_so_and_not_missed(scene: Scene) -> None:
    run_dir, series = scene.folder / "later", f'{{instance="{scene.later}"}}'
    port = scene.later.rpartition(":")[2]
    command = ddp_bp("train", "digits", "-n", 2, "--run-dir", run_dir, "--set", f"coordinator.http_port={port}")
    result = run_to_end(command, 60)
    assert result.returncode == 0, result.stderr
    is_long_gone = f"count_over_time((up{series} == 0)[3s:500ms]) >= 5"
    wait_until(lambda: scene.server.query(is_long_gone), "Prometheus to see that it is gone")

    def last(name: str) -> list[float]:
        return [float(row["value"][1]) for row in scene.server.query(f"last_over_time({name}[10m])")]

    summary = summary_of(run_dir)
    assert last(f'ddp_bp_state{{state="finished", instance="{scene.later}"}}') == [1]
    assert last(f"ddp_bp_step{series}") == [summary["steps"]]
    assert last(f"ddp_bp_samples_total{series}") == [summary["samples"]]
    missed = f'ALERTS{{alertname="DdpBpCoordinatorDown", instance="{scene.later}"}}'
    assert scene.server.query(f"count_over_time({missed}[1h])") == []
    assert [alert for alert, instance in scene.server.alerts() if instance == scene.later] == []


def test_every_alert_has_fired_by_now(scene: Scene) -> None:
    fired = scene.server.query('count by (alertname) (count_over_time(ALERTS{alertstate="firing"}[1h]))')
    assert {row["metric"]["alertname"] for row in fired} == set(of_rules(ALERTS))


def test_a_coordinator_that_ends_in_good_order_is_not(scene: Scene) -> None:
    run_dir = scene.folder / "orderly"
    address = json.loads((run_dir / "coordinator.json").read_bytes())["address"]
    worker = ddp_bp("worker", "digits", "--run-dir", run_dir, "--coordinator", address, "--set", "train.epochs=1")
    result = run_to_end(worker, 60)
    assert result.returncode == 0, result.stderr
    is_gone = f'up{{instance="{scene.orderly}"}} == 0'
    wait_until(lambda: scene.server.query(is_gone), "Prometheus to see that it is gone")
    assert [alert for alert, instance in scene.server.alerts() if instance == scene.orderly] == []
