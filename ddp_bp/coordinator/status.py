"""The state of a job as plain data, for /api/status and for tools.

A view: it changes nothing. Numbers that are not known yet, or not finite, are None.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ddp_bp._version import __version__
from ddp_bp.coordinator.roster import Member
from ddp_bp.coordinator.stacks import whereabouts
from ddp_bp.wire.phases import PHASES, SPARE

if TYPE_CHECKING:
    from ddp_bp.coordinator.state import Coordinator


def status_of(coordinator: Coordinator, now: float) -> dict[str, Any]:
    """What is known of the job at a reading of the state machine's clock; times are in seconds."""
    progress, evaluation = coordinator.progress, coordinator.progress.evaluation
    scalars = progress.scalars
    return {
        "version": __version__,
        "state": coordinator.state.value,
        "ready": ready_problem(coordinator) is None,
        "stop_cause": coordinator.stop_cause,
        "run_id": coordinator.config.run_id,
        "run_dir": str(coordinator.config.run_dir),
        "recipe": coordinator.config.recipe_name,
        "address": coordinator.address,
        "uptime_seconds": now - coordinator.started_at,
        "world_size": coordinator.roster.world_size,
        "full_world_size": coordinator.config.world_size,
        "wanted_world_size": coordinator.scaling.wanted,
        "restarts": coordinator.config.num_restarts,
        "resizes": coordinator.config.num_resizes,
        "recoveries": coordinator.roster.num_recoveries,
        "membership_epoch": coordinator.roster.epoch,
        "lost_ranks": list(coordinator.roster.lost),
        "spare_ranks": list(coordinator.roster.spares),
        "shards": coordinator.roster.shards,
        "step": progress.step,
        "total_steps": coordinator.config.total_steps,
        "epoch": progress.epoch,
        "steps": progress.num_steps,
        "samples": progress.num_samples,
        "nonfinite_steps": progress.num_nonfinite_steps,
        "samples_per_second": _finite(progress.samples_per_second),
        "train_loss": _finite(scalars.get("train_loss")),
        "train_accuracy": _finite(scalars.get("train_accuracy")),
        "learning_rate": _finite(scalars.get("learning_rate")),
        "gradient_norm": _finite(scalars.get("gradient_norm")),
        "eval_loss": _finite(evaluation.loss) if evaluation else None,
        "eval_accuracy": _finite(evaluation.accuracy) if evaluation else None,
        "eval_step": evaluation.step if evaluation else None,
        "ranks": _ranks_of(coordinator, now),
        "evictions": sum(coordinator.lookout.evictions.num_evictions.values()),
        "checkpoints": _checkpoints_of(coordinator),
        "failure": _failure_of(coordinator),
    }


def history_of(coordinator: Coordinator) -> dict[str, list[tuple[int, float | None]]]:
    """Curves of this session as (step, value) points, thinned out where there are many."""
    progress = coordinator.progress
    return {
        "train_loss": [(step, _finite(value)) for step, value in progress.train_loss.points],
        "eval_loss": [(step, _finite(value)) for step, value in progress.eval_loss.points],
    }


def ready_problem(coordinator: Coordinator) -> str | None:
    """Why the job is not training with all its ranks; None when it is."""
    if coordinator.state.value != "training":
        if coordinator.state.value != "waiting":
            return f"the job is {coordinator.state.value}"
        joined = f"{len(coordinator.roster.working())} of {coordinator.roster.world_size} ranks have joined"
        return (
            f"the job is waiting, {joined}; not yet rank {', '.join(map(str, coordinator.lookout.beginning.missing))}"
        )
    missing = [str(rank) for rank, member in coordinator.roster.working() if not member.connected]
    if missing:
        return f"rank {', '.join(missing)} is not connected"
    late = ", ".join(map(str, coordinator.roster.unannounced))
    return f"rank {late} has not gone on yet without rank {coordinator.roster.lost[-1]}" if late else None


def _ranks_of(coordinator: Coordinator, now: float) -> list[dict[str, Any]]:
    suspected = {one.rank: (one.reason, one.seconds) for one in coordinator.suspicions(now)}
    return [
        {
            **_rank_of(coordinator, rank, member, now),
            "suspected": suspected[rank][0] if rank in suspected else None,
            "suspected_seconds": suspected[rank][1] if rank in suspected else None,
        }
        for rank, member in coordinator.roster
    ]


def _rank_of(coordinator: Coordinator, rank: int, member: Member, now: float) -> dict[str, Any]:
    where, is_spare = whereabouts(rank, member, now), rank in coordinator.roster.spares
    durations = coordinator.progress.durations.get(rank, {})
    means = {f"{phase}_seconds_mean": durations[phase].mean_seconds for phase in PHASES if phase in durations}
    return {
        "rank": rank,
        "current_rank": None if is_spare else member.rank,
        "hostname": member.hello.hostname,
        "pid": member.hello.pid,
        "connected": member.connected,
        "step": member.step,
        "phase": SPARE if is_spare else member.phase,
        "doing": SPARE if is_spare else where["phase"],
        "doing_seconds": where["phase_seconds"],
        "heartbeat_age_seconds": None if member.left else where["heartbeat_age_seconds"],
        "last_report_age_seconds": None if member.report_at is None else now - member.report_at,
        "last_step_age_seconds": None if member.step_at is None else now - member.step_at,
        "backward_seconds_mean": None,
        "rank_wait_seconds_mean": None,
        **means,
    }


def _checkpoints_of(coordinator: Coordinator) -> dict[str, Any]:
    record = coordinator.checkpoints.record
    return {
        "in_progress": coordinator.checkpoints.in_progress,
        "count": record.results["ok"],
        "failures": record.results["failed"],
        "dropped": record.results["dropped"],
        "last_step": record.last_step,
        "last_path": record.last_path,
        "last_success_unix_seconds": record.last_success_unix_seconds,
        "last_bytes": record.last_bytes,
        "last_seconds": record.last_seconds,
    }


def _failure_of(coordinator: Coordinator) -> dict[str, Any] | None:
    failure = coordinator.failure
    if failure is None:
        return None
    return {"rank": failure.rank, "step": failure.step, "error": failure.error, "traceback": failure.traceback}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
