"""Dashboards, rules and alerts ask for metrics that the coordinator has, and are what Prometheus and Grafana read."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from expressions import ALERTS, DASHBOARDS, RULES, metrics_in, of_dashboard, of_rules
from haste import AGE_SECONDS, REAL_AGE_SECONDS, in_haste
from prometheus import DEPLOY, why_not
from prometheus_client.parser import text_string_to_metric_families

from ddp_bp.wire import messages as m
from ddp_bp.wire.phases import NUM_PHASE_BUCKETS, PHASES

sys.path.append(str(Path(__file__).parents[1] / "coordinator"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every series that a coordinator exports once everything has happened that has one."""
    import httpx
    from coordinator_fakes import report, running

    with running(tmp_path_factory.mktemp("run"), total_steps=10) as server:
        workers = server.joined()
        scalars = dict.fromkeys(("train_loss", "train_accuracy", "learning_rate", "gradient_norm"), 0.5)
        phases = {phase: m.PhaseTotal([1] * NUM_PHASE_BUCKETS, 1.0) for phase in PHASES}
        for worker in workers:
            worker.send(report(worker.rank, scalars=scalars, phases=phases))
        workers[0].send(m.Evaluation(10, 1, 0.25, 0.9, 100, 0.1))
        for worker in workers:
            worker.send_checkpoint(10, "final")
        assert workers[0].expect(m.CheckpointDone).ok
        text = httpx.get(server.address.url + "metrics").text
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def test_every_metric_that_is_asked_for_is_exported(exported: set[str]) -> None:
    recorded = set(of_rules(RULES))
    for path in DASHBOARDS:
        for panel, query in of_dashboard(path).items():
            unknown = metrics_in(query) - exported - recorded
            assert not unknown, f"{path.name}: {panel} asks for {unknown}, which nobody exports"
    for name, expression in {**of_rules(RULES), **of_rules(ALERTS)}.items():
        unknown = metrics_in(expression) - exported - recorded
        assert not unknown, f"{name} asks for {unknown}, which nobody exports"


def test_every_metric_of_the_readme_is_exported(exported: set[str]) -> None:
    text = (DEPLOY.parent / "README.md").read_text()
    named = {
        name
        for line in text.splitlines()
        if line.startswith("| `ddp_bp_")
        for name in re.findall(r"`(ddp_bp\w+)`", line)
    }
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported}
    assert len(named) > 10 and named <= families


def test_dashboards_are_what_their_script_makes() -> None:
    script = runpy.run_path(str(DEPLOY / "grafana/make_dashboards.py"))
    assert {path.stem for path in DASHBOARDS} == set(script["DASHBOARDS"])
    for path in DASHBOARDS:
        assert path.read_text() == script["text_of"](path.stem), "run python deploy/grafana/make_dashboards.py"


def test_rules_for_the_prometheus_operator_are_what_their_script_makes() -> None:
    import yaml

    script = DEPLOY / "kubernetes/make_prometheusrule.py"
    made = runpy.run_path(str(script))
    text = made["FILE"].read_text()
    assert text == made["text"](), "run python deploy/kubernetes/make_prometheusrule.py"
    groups = [group for path in (RULES, ALERTS) for group in yaml.safe_load(path.read_text())["groups"]]
    assert yaml.safe_load(text)["spec"] == {"groups": groups}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_do_not_overlap_and_say_what_they_show(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        assert panel["title"] and panel["targets"]
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_every_alert_has_a_paragraph_in_the_readme() -> None:
    import yaml

    readme = (DEPLOY.parent / "README.md").read_text()
    paragraphs = dict(re.findall(r"^### (DdpBp\w+)\n\n(.+?)(?=\n\n##)", readme, flags=re.MULTILINE | re.DOTALL))
    alerts = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    assert list(paragraphs) == [alert["alert"] for alert in alerts]
    for alert in alerts:
        assert len(paragraphs[alert["alert"]]) > 200
        assert alert["annotations"]["runbook"] == f"README.md#{alert['alert'].lower()}"


def test_alerts_in_haste_differ_in_their_times_alone() -> None:
    alerts = ALERTS.read_text()
    pairs = zip(alerts.splitlines(), in_haste(alerts).splitlines(), strict=True)
    changed = [(real, hasty) for real, hasty in pairs if real != hasty]
    for real, hasty in changed:
        if real.strip().startswith("for:"):
            assert (hasty.strip(), real.partition("for")[0]) == ("for: 0s", hasty.partition("for")[0])
        else:
            assert hasty == real.replace(f"> {REAL_AGE_SECONDS}", f"> {AGE_SECONDS}")
    # No step (of a job that has made one, and of one that has not), and no checkpoint.
    assert len(changed) == alerts.count(" for: ") + 3


@pytest.mark.prometheus
def test_prometheus_accepts_rules_alerts_and_configuration() -> None:
    if reason := why_not():
        pytest.skip(reason)
    commands = [
        ["promtool", "check", "rules", RULES, ALERTS],
        ["promtool", "check", "config", "--syntax-only", DEPLOY / "prometheus/prometheus.yml"],
        ["promtool", "test", "rules", Path(__file__).parent / "alerts.test.yml"],
    ]
    for command in commands:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
