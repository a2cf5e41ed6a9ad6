"""Write `monitoring/prometheusrule.yaml`, the rules and alerts of deploy/prometheus for the Prometheus Operator:
`python deploy/kubernetes/make_prometheusrule.py`.

It copies lines, comments included, and understands none of them.
"""

from __future__ import annotations

from pathlib import Path

FILE = Path(__file__).parent / "monitoring" / "prometheusrule.yaml"
SOURCES = [Path(__file__).parents[1] / "prometheus" / name for name in ("rules.yml", "alerts.yml")]
_HEADER = """\
# Made of deploy/prometheus/rules.yml and alerts.yml by deploy/kubernetes/make_prometheusrule.py.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: ddp-bp
  labels: { app.kubernetes.io/name: ddp-bp }
spec:
  groups:
"""


def text() -> str:
    """The whole file."""
    return _HEADER + "".join(_groups(source.read_text()) for source in SOURCES)


def _groups(source: str) -> str:
    _, _, groups = source.partition("groups:\n")
    return "".join(f"  {line}" if line.strip() else line for line in groups.splitlines(keepends=True))


if __name__ == "__main__":
    FILE.write_text(text())
