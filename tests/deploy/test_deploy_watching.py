"""A real Prometheus watches a real job with a slow rank and everything that alerts are for: each panel has data, each
alert fires, and not before its cause is there."""

from __future__ import annotations

import contextlib
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
from support import ddp_bp, end_tree, start, status_of, wait_for_step, wait_until

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
    """The job with the slow rank, a coordinator without ranks, and the Prometheus that watches both."""

    def __init__(self, folder: Path, server: Prometheus, job: str, lonely: str) -> None:
        self.folder, self.server, self.job, self.lonely = folder, server, job, lonely

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
    ports = {"job": free_port(), "lonely": free_port()}
    commands = {
        "job": ddp_bp("train", recipe, "-n", 2, "--run-dir", folder / "job"),
        "lonely": ddp_bp("coordinator", recipe, "-n", 2, "--run-dir", folder / "lonely"),
    }
    (folder / "alerts.yml").write_text(in_haste(ALERTS.read_text()))
    shutil.copy(RULES, folder / "rules.yml")
    targets = [f"127.0.0.1:{port}" for port in ports.values()]
    config = (
        "global: { scrape_interval: 500ms, evaluation_interval: 500ms }\n"
        "rule_files: [rules.yml, alerts.yml]\n"
        f"scrape_configs: [{{ job_name: ddp_bp, static_configs: [{{ targets: {targets} }}] }}]\n"
    )
    started = []
    try:
        for name, command in commands.items():
            started.append(start([*command, "--set", f"coordinator.http_port={ports[name]}"]))
        wait_for_step(folder / "job", 1)
        wait_until(lambda: status_of(folder / "lonely"), "the coordinator without ranks")
        with prometheus(folder, config) as server:
            yield Scene(folder, server, *targets)
    finally:
        for process in started:
            end_tree(process)
            for stream in (process.stdout, process.stderr):
                stream.close()


def test_every_panel_has_data(scene: Scene) -> None:
    waiting = {
        f"{path.stem}: {panel}": query for path in DASHBOARDS for panel, query in of_dashboard(path).items()
    } | of_rules(RULES)
    assert len(waiting) > 60
    deadline = time.monotonic() + 60
    while waiting and time.monotonic() < deadline:
        waiting = {panel: query for panel, query in waiting.items() if not scene.server.query(query)}
        time.sleep(0.2)
    assert not waiting


def test_only_the_slow_rank_is_called_a_straggler(scene: Scene) -> None:
    scene.wait_for_alerts(("DdpBpStraggler", scene.job), ("DdpBpRanksMissing", scene.lonely))
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


def test_a_coordinator_that_is_killed_is_noticed(scene: Scene) -> None:
    pid = json.loads((scene.folder / "lonely/coordinator.json").read_bytes())["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: ("DdpBpCoordinatorDown", scene.lonely) in scene.server.alerts(), "DdpBpCoordinatorDown", 20)


def test_a_coordinator_that_ends_in_good_order_is_not(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    port = free_port()
    shutil.copy(RULES, tmp_path / "rules.yml")
    (tmp_path / "alerts.yml").write_text(in_haste(ALERTS.read_text()))
    config = (
        "global: { scrape_interval: 250ms, evaluation_interval: 250ms }\n"
        "rule_files: [rules.yml, alerts.yml]\n"
        f"scrape_configs: [{{ job_name: ddp_bp, static_configs: [{{ targets: ['127.0.0.1:{port}'] }}] }}]\n"
    )
    coordinator = ddp_bp("coordinator", "digits", "-n", 1, "--run-dir", tmp_path / "run", "--linger", 2)
    running = start([*coordinator, "--set", f"coordinator.http_port={port}"])
    with contextlib.ExitStack() as stack:
        stack.callback(running.stdout.close)
        stack.callback(running.stderr.close)
        stack.callback(end_tree, running)
        wait_until(lambda: status_of(tmp_path / "run"), "the coordinator")
        server = stack.enter_context(prometheus(tmp_path, config))
        wait_until(lambda: server.query("up == 1"), "Prometheus to look for the first time")
        address = json.loads((tmp_path / "run/coordinator.json").read_bytes())["address"]
        worker = ddp_bp("worker", "digits", "--run-dir", tmp_path / "run", "--coordinator", address)
        training = start([*worker, "--set", "train.epochs=1"])
        stack.callback(training.stdout.close)
        stack.callback(training.stderr.close)
        stack.callback(end_tree, training)
        assert training.wait(60) == 0
        assert running.wait(20) == 0
        wait_until(lambda: server.query("up == 0"), "Prometheus to see that it is gone")
        assert server.alerts() == set()
