"""Write the Grafana dashboards in `dashboards/`: `python deploy/grafana/make_dashboards.py`.

What each panel asks for stands here; layout and the many fields that Grafana wants are the same for all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
WIDTH = 24

JOB = 'job=~"$job",instance=~"$instance"'
RANK = f'{JOB},rank=~"$rank"'
PHASES = ("data_wait", "forward", "backward", "rank_wait", "exchange", "optimizer")
COMPLETE = f"ddp_bp_step{{{JOB}}} / ddp_bp_total_steps{{{JOB}}}"
REMAINING = (
    f"(ddp_bp_total_steps{{{JOB}}} - ddp_bp_step{{{JOB}}}) / (rate(ddp_bp_steps_total{{{JOB}}}[$__rate_interval]) > 0)"
)


@dataclass(frozen=True)
class Panel:
    """`queries` maps legends to expressions. Width in Grafana's 24 columns."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    about: str = ""


def mean_seconds(phase: str, by: str, where: str = JOB) -> str:
    name = f"ddp_bp_{phase}_seconds"
    seconds, steps = (f"sum {by}({rate_of(f'{name}_{part}', where)})" for part in ("sum", "count"))
    return f"{seconds} / {steps}"


def quantile(share: float, histogram: str, by: str, where: str = JOB) -> str:
    return f"histogram_quantile({share}, sum by ({by}) (rate({histogram}_bucket{{{where}}}[$__rate_interval])))"


def of_job(metric: str) -> str:
    return f"{metric}{{{JOB}}}"


def of_ranks(metric: str) -> str:
    return f"{metric}{{{RANK}}}"


def share_of_step(phase: str) -> str:
    return f"sum({rate_of(f'ddp_bp_{phase}_seconds_sum')}) / sum({rate_of('ddp_bp_step_seconds_sum')})"


def rate_of(metric: str, where: str = JOB) -> str:
    return f"rate({metric}{{{where}}}[$__rate_interval])"


def stat(title: str, expression: str, unit: str = "short", width: int = 4, legend: str = "{{instance}}") -> Panel:
    return Panel(title, {legend: expression}, unit, "stat", width)


OVERVIEW = [
    stat("State", f"ddp_bp_state{{{JOB}}} == 1", legend="{{state}}"),
    stat("Trained", COMPLETE, "percentunit"),
    stat("Time that remains", REMAINING, "s"),
    stat("Samples a second", f"ddp_bp:samples:rate1m{{{JOB}}}"),
    stat("Ranks connected", of_job("ddp_bp_workers_connected")),
    stat("Age of the newest checkpoint", f"time() - {of_job('ddp_bp_checkpoint_last_success_timestamp_seconds')}", "s"),
    Panel("Loss", {"training": of_job("ddp_bp_train_loss"), "evaluation": of_job("ddp_bp_eval_loss")}, width=12),
    Panel(
        "Accuracy",
        {"training": of_job("ddp_bp_train_accuracy"), "evaluation": of_job("ddp_bp_eval_accuracy")},
        "percentunit",
        width=12,
    ),
    Panel("Samples a second", {"{{instance}}": rate_of("ddp_bp_samples_total")}),
    Panel("Steps a second", {"{{instance}}": rate_of("ddp_bp_steps_total")}),
    Panel("Epoch", {"{{instance}}": of_job("ddp_bp_epoch")}),
    Panel("Learning rate", {"{{instance}}": of_job("ddp_bp_learning_rate")}),
    Panel("Norm of the gradient", {"{{instance}}": of_job("ddp_bp_gradient_norm")}),
    Panel(
        "Messages",
        {"{{type}}": rate_of("ddp_bp_messages_total"), "rejected": rate_of("ddp_bp_messages_rejected_total")},
    ),
    Panel(
        "Jobs",
        {"": f"ddp_bp_run_info{{{JOB}}} * on (job, instance) group_left (version) ddp_bp_build_info"},
        kind="table",
        width=24,
    ),
]

STEP = [
    Panel(
        "Mean step, by phase",
        {phase: mean_seconds(phase, "") for phase in PHASES},
        "s",
        width=16,
        stacked=True,
        about="Mean over ranks. Waiting for other ranks is a phase of its own and in no other.",
    ),
    Panel(
        "Shares of the time",
        {phase: share_of_step(phase) for phase in PHASES},
        "percentunit",
        "bargauge",
    ),
    Panel(
        "Whole step",
        {f"{share:.0%}": quantile(share, "ddp_bp_step_seconds", "le") for share in (0.5, 0.95, 0.99)},
        "s",
    ),
    Panel("Backward, 95 %", {"rank {{rank}}": quantile(0.95, "ddp_bp_backward_seconds", "rank, le")}, "s"),
    Panel("Forward, 95 %", {"rank {{rank}}": quantile(0.95, "ddp_bp_forward_seconds", "rank, le")}, "s"),
    Panel(
        "Backward to forward",
        {
            "{{instance}}": f"sum by (instance) ({rate_of('ddp_bp_backward_seconds_sum')}) / "
            f"sum by (instance) ({rate_of('ddp_bp_forward_seconds_sum')})"
        },
        about="About 2 for dense networks.",
    ),
    Panel(
        "Share that is not computing",
        {
            "waiting for ranks": share_of_step("rank_wait"),
            "exchange": share_of_step("exchange"),
            "waiting for data": share_of_step("data_wait"),
        },
        "percentunit",
        stacked=True,
    ),
    Panel(
        "Steps by how long they took",
        {"{{le}}": f"sum by (le) (increase(ddp_bp_step_seconds_bucket{{{JOB}}}[$__rate_interval]))"},
        kind="heatmap",
    ),
]

RANKS = [
    Panel(
        "Share of its time that a rank works by itself",
        {"rank {{rank}}": of_ranks("ddp_bp:rank_busy:ratio_rate1m")},
        "percentunit",
        width=12,
        about="The slow rank has the largest share; the others wait for it.",
    ),
    Panel(
        "Longer than the other ranks by",
        {
            "rank {{rank}}": f"{of_ranks('ddp_bp:rank_busy:ratio_rate1m')} / "
            f"{of_ranks('ddp_bp:other_ranks_busy:ratio_rate1m')} - 1"
        },
        "percentunit",
        width=12,
        about="The alert DdpBpStraggler is for more than 30 %.",
    ),
    Panel("Waiting for other ranks", {"rank {{rank}}": mean_seconds("rank_wait", "by (rank) ", RANK)}, "s", width=6),
    Panel("Forward", {"rank {{rank}}": mean_seconds("forward", "by (rank) ", RANK)}, "s", width=6),
    Panel("Backward", {"rank {{rank}}": mean_seconds("backward", "by (rank) ", RANK)}, "s", width=6),
    Panel("Waiting for data", {"rank {{rank}}": mean_seconds("data_wait", "by (rank) ", RANK)}, "s", width=6),
    Panel("Exchange", {"rank {{rank}}": mean_seconds("exchange", "by (rank) ", RANK)}, "s", width=6),
    Panel("Optimizer", {"rank {{rank}}": mean_seconds("optimizer", "by (rank) ", RANK)}, "s", width=6),
    Panel("Since its last step", {"rank {{rank}}": f"ddp_bp_last_step_age_seconds{{{RANK}}}"}, "s", width=6),
    Panel(
        "Ranks",
        {
            "connected": of_job("ddp_bp_workers_connected"),
            "of the job": of_job("ddp_bp_world_size"),
            "spares": of_job("ddp_bp_spares_connected"),
        },
        width=6,
        about="In place, a job goes on with fewer ranks after some have died.",
    ),
    Panel("Since it was heard of", {"rank {{rank}}": of_ranks("ddp_bp_rank_heartbeat_age_seconds")}, "s"),
    Panel(
        "Suspected",
        {"rank {{rank}} {{reason}}": of_ranks("ddp_bp_rank_suspected")},
        about="1 while a rank is silent or stuck, or in a deadlock.",
    ),
    Panel("Evicted", {"{{reason}}": of_job("ddp_bp_evictions_total")}, about="How many ranks were, by reason."),
]

CHECKPOINTS = [
    stat(
        "Age of the newest checkpoint", f"time() - {of_job('ddp_bp_checkpoint_last_success_timestamp_seconds')}", "s", 6
    ),
    stat("Steps since then", f"{of_job('ddp_bp_step')} - {of_job('ddp_bp_checkpoint_last_step')}", width=6),
    stat("Size of the newest checkpoint", of_job("ddp_bp_checkpoint_last_bytes"), "bytes", 6),
    stat("Room in the run directory", of_job("ddp_bp_run_directory_free_bytes"), "bytes", 6),
    Panel(
        "Checkpoints",
        {"{{result}}": f"increase(ddp_bp_checkpoints_total{{{JOB}}}[$__rate_interval])"},
        about="Failed, or dropped for a newer one.",
    ),
    Panel(
        "From the first message until it is durable",
        {f"{share:.0%}": quantile(share, "ddp_bp_checkpoint_duration_seconds", "le") for share in (0.5, 0.95)},
        "s",
    ),
    Panel("Written", {"{{instance}}": rate_of("ddp_bp_checkpoint_bytes_total")}, "Bps"),
    Panel(
        "Room in the run directory",
        {"free": of_job("ddp_bp_run_directory_free_bytes"), "in all": of_job("ddp_bp_run_directory_size_bytes")},
        "bytes",
    ),
    Panel(
        "Writes that failed", {"{{exported_job}}": f"increase(ddp_bp_disk_failures_total{{{JOB}}}[$__rate_interval])"}
    ),
    Panel("Gaps in the ledger", {"{{instance}}": of_job("ddp_bp_ledger_gaps_total")}),
    Panel(
        "Since the last step", {"{{instance}}": f"min by (instance) ({of_job('ddp_bp_last_step_age_seconds')})"}, "s"
    ),
    Panel(
        "Recoveries",
        {"in place": of_job("ddp_bp_recoveries_total"), "all started again": of_job("ddp_bp_restarts_total")},
        width=16,
        about="How often training went on after ranks had died. The alert DdpBpRepeatedRecoveries is for 3 in an hour.",
    ),
]

DASHBOARDS = {
    "overview": ("ddp_bp: overview", OVERVIEW, False),
    "step": ("ddp_bp: where the step's time goes", STEP, False),
    "ranks": ("ddp_bp: ranks and stragglers", RANKS, True),
    "checkpoints": ("ddp_bp: checkpoints and recovery", CHECKPOINTS, False),
}


def laid_out(panels: list[Panel]) -> list[dict[str, Any]]:
    """The panels from left to right in rows, as Grafana wants them."""
    made, x, y, row_height = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        height = 4 if panel.kind == "stat" else 8
        if x + panel.width > WIDTH:
            x, y, row_height = 0, y + row_height, 0
        made.append(one_panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": height}))
        x, row_height = x + panel.width, max(row_height, height)
    return made


def one_panel(number: int, panel: Panel, position: dict[str, int]) -> dict[str, Any]:
    shape = {"heatmap": "heatmap", "table": "table"}.get(panel.kind, "time_series")
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": {"type": "prometheus", "uid": "$datasource"},
            "expr": expression,
            "legendFormat": legend,
            "format": shape,
            "instant": panel.kind in ("table", "bargauge"),
        }
        for index, (legend, expression) in enumerate(panel.queries.items())
    ]
    drawing = {"fillOpacity": 60, "stacking": {"mode": "normal"}} if panel.stacked else {"fillOpacity": 0}
    options = {"stat": {"textMode": "value_and_name"}, "heatmap": {"calculate": False}}.get(panel.kind, {})
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "gridPos": position,
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": drawing}, "overrides": []},
        "options": options,
        "targets": targets,
    }


def variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard(name: str) -> dict[str, Any]:
    title, panels, by_rank = DASHBOARDS[name]
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "current": {}},
        variable("job", "label_values(ddp_bp_build_info, job)"),
        variable("instance", 'label_values(ddp_bp_build_info{job=~"$job"}, instance)'),
    ]
    if by_rank:
        variables.append(variable("rank", f"label_values(ddp_bp_last_step_age_seconds{{{JOB}}}, rank)"))
    others = {
        "type": "dashboards",
        "title": "ddp_bp",
        "tags": ["ddp_bp"],
        "asDropdown": True,
        "keepTime": True,
        "includeVars": True,
    }
    return {
        "uid": f"ddp-bp-{name}",
        "title": title,
        "tags": ["ddp_bp"],
        "schemaVersion": 39,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,
        "links": [others],
        "templating": {"list": variables},
        "panels": laid_out(panels),
    }


def text_of(name: str) -> str:
    return json.dumps(dashboard(name), indent=2) + "\n"


if __name__ == "__main__":
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(text_of(name))
