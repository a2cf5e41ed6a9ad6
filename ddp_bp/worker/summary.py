"""What a job has come to, as it goes to summary.json. The keys are a contract with tools."""

from __future__ import annotations

import math
from typing import Any

from ddp_bp.checkpoint import weights_sha256
from ddp_bp.worker.assemble import Job
from ddp_bp.worker.loop import Outcome
from ddp_bp.worker.progress import Progress


def summary_of(
    job: Job,
    progress: Progress,
    outcome: Outcome,
    *,
    world_size: int,
    ledger_sha256: str,
    num_recoveries: int,
    resumed_from_step: int | None,
    sample: str | None,
) -> dict[str, Any]:
    """The summary of a run at the end of a start. `sample`: what the trained model has written, if anything."""
    rate = outcome.num_samples / outcome.seconds if outcome.seconds else 0.0
    return {
        "steps": progress.step,
        "epochs": progress.step / job.plan.steps_per_epoch,
        "samples": progress.samples,
        "world_size": world_size,
        "shards": job.plan.num_shards,
        "train_loss": _finite(progress.last_train_loss),
        "eval_loss": _finite(progress.eval_loss),
        "eval_accuracy": progress.eval_accuracy,
        "weights_sha256": weights_sha256(job.parameters.arrays()),
        "ledger_sha256": ledger_sha256,
        "seconds": round(outcome.seconds, 6),
        "samples_per_second": round(rate, 3),
        "skipped_steps": progress.skipped_steps,
        "recoveries": num_recoveries,
        "resumed_from_step": resumed_from_step,
        **({} if sample is None else {"sample": sample}),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
