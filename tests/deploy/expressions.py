"""What dashboards, rules and alerts ask Prometheus for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from prometheus import DEPLOY

DASHBOARDS = sorted((DEPLOY / "grafana/dashboards").glob("*.json"))
RULES, ALERTS = DEPLOY / "prometheus/rules.yml", DEPLOY / "prometheus/alerts.yml"
_VARIABLES = {"$job": ".+", "$instance": ".+", "$rank": ".+", "$__rate_interval": "10s"}


def of_dashboard(path: Path) -> dict[str, str]:
    """{"panel, legend": query} with the variables of Grafana filled in."""
    found = {}
    for panel in json.loads(path.read_text())["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in _VARIABLES.items():
                query = query.replace(name, value)
            assert "$" not in query, f"{path.name}, {panel['title']}: unknown variable in {query}"
            found[f"{panel['title']}, {target['legendFormat']}"] = query
    return found


def of_rules(path: Path) -> dict[str, str]:
    """{name of a rule or an alert: its expression}."""
    rules = [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
    return {rule.get("record") or rule["alert"]: rule["expr"] for rule in rules}


def metrics_in(expression: str) -> set[str]:
    """The names of metrics of ours, and of recorded ones."""
    return set(re.findall(r"\bddp_bp[_:][a-z0-9_:]*", re.sub(r'"[^"]*"', "", expression)))
