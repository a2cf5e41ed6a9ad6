"""The lines of metrics.jsonl: what a reader of a finished run can still see of how it went.

One record for each report of rank 0 in which steps were committed, and one for each evaluation.
"""

from __future__ import annotations

from ddp_bp.wire.messages import Evaluation, Report


def report_record(report: Report, samples_per_second: float | None) -> dict[str, float | None]:
    """A line about a report of rank 0; time is that rank's, the scalars are whatever it sent."""
    return {
        "unix_seconds": report.sent_at_unix_seconds,
        "step": report.step,
        "epoch": report.epoch,
        **report.scalars,
        "samples_per_second": samples_per_second,
    }


def evaluation_record(evaluation: Evaluation, unix_seconds: float) -> dict[str, float | None]:
    """A line about an evaluation; time is the coordinator's."""
    return {
        "unix_seconds": unix_seconds,
        "step": evaluation.step,
        "epoch": evaluation.epoch,
        "eval_loss": evaluation.loss,
        "eval_accuracy": evaluation.accuracy,
        "eval_samples": evaluation.num_samples,
        "eval_seconds": evaluation.seconds,
    }
