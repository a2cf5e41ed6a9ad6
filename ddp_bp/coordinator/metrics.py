"""The state of a job as Prometheus metrics.

A collector over a snapshot of the state at the time of the scrape; it counts nothing itself and touches no global
registry. A value that is not known yet has no series, rather than one that says 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ddp_bp._version import __version__
from ddp_bp.coordinator.checkpoints import DURATION_BUCKETS_SECONDS
from ddp_bp.coordinator.lifecycle import State
from ddp_bp.coordinator.space import Room
from ddp_bp.coordinator.suspicion import REASONS
from ddp_bp.wire.phases import PHASE_BUCKETS_SECONDS, PHASES

if TYPE_CHECKING:
    from ddp_bp.coordinator.state import Coordinator

_PHASE_HELP: Final = {
    "data_wait": "Time a step waited for its batch, by rank.",
    "forward": "Time of the forward pass of a step, by rank.",
    "backward": "Time of the backward pass of a step, by rank; computing only, without waiting for other ranks.",
    "rank_wait": "Time a step waited for other ranks, by rank; the slow rank is the one that waits least.",
    "exchange": "Time a step spent summing gradients over ranks, by rank.",
    "optimizer": "Time of the optimizer's update, by rank.",
    "step": "Time of a whole training step, by rank.",
}


class JobCollector(Collector):
    """Reads a coordinator's state, by its own clock, whenever it is collected."""

    def __init__(self, coordinator: Coordinator, clock: Callable[[], float]) -> None:
        """`clock` gives the monotonic time, in seconds, that the coordinator's events came with."""
        self._coordinator = coordinator
        self._clock = clock
        self.room: Room | None = None

    def collect(self) -> Iterator[Metric]:
        yield from self._job()
        yield from self._training()
        yield from self._ranks()
        yield from self._checkpoints()
        yield from self._storage()
        yield from self._messages()

    def _job(self) -> Iterator[Metric]:
        coordinator = self._coordinator
        yield InfoMetricFamily("ddp_bp_build", "Version of ddp_bp.", value={"version": __version__})
        run = {"recipe": coordinator.config.recipe_name, "run_dir": str(coordinator.config.run_dir)}
        yield InfoMetricFamily("ddp_bp_run", "What is trained, and where it is kept.", value=run)
        started = coordinator.unix_seconds(coordinator.started_at)
        yield _gauge("ddp_bp_start_timestamp_seconds", "Unix time at which the coordinator started.", started)
        states = GaugeMetricFamily("ddp_bp_state", "1 for the state that the job is in, else 0.", labels=["state"])
        for state in State:
            states.add_metric([state.value], float(state is coordinator.state))
        yield states
        roster = coordinator.roster
        yield _gauge("ddp_bp_world_size", "Number of ranks that train.", roster.world_size)
        about = "Rises each time that ranks have died and the others have gone on without them."
        yield _gauge("ddp_bp_membership_epoch", about, roster.epoch)
        about = "How often ranks that were left have gone on without those that had died."
        yield CounterMetricFamily("ddp_bp_recoveries", about, value=roster.num_recoveries)
        yield CounterMetricFamily(
            "ddp_bp_restarts",
            "How often all ranks were started again from a checkpoint after a failure.",
            value=coordinator.config.num_restarts,
        )
        yield CounterMetricFamily(
            "ddp_bp_resizes",
            "How often all ranks were started from a checkpoint to be another number of them.",
            value=coordinator.config.num_resizes,
        )
        connected = sum(member.connected for _, member in roster.working())
        yield _gauge("ddp_bp_workers_connected", "Number of ranks that train and are connected.", connected)
        spares = len(roster.connected()) - connected
        yield _gauge("ddp_bp_spares_connected", "Number of ranks that wait in case another one dies.", spares)

    def _training(self) -> Iterator[Metric]:
        progress = self._coordinator.progress
        yield CounterMetricFamily(
            "ddp_bp_steps",
            "Training steps since the job was started, those that were repeated after a death included.",
            value=progress.num_steps,
        )
        yield CounterMetricFamily(
            "ddp_bp_samples", "Samples trained on since the job was started.", value=progress.num_samples
        )
        yield CounterMetricFamily(
            "ddp_bp_nonfinite_steps",
            "Training steps that changed nothing, because a loss or gradient was not finite.",
            value=progress.num_nonfinite_steps,
        )
        total_steps = self._coordinator.config.total_steps
        if total_steps is not None:
            yield _gauge("ddp_bp_total_steps", "Committed steps at which training is complete.", total_steps)
        if progress.reported:
            yield _gauge("ddp_bp_step", "Committed training steps since the beginning of the run.", progress.step)
            yield _gauge("ddp_bp_epoch", "Epoch, counted from 0.", progress.epoch)
        for name, about in (
            ("train_loss", "Latest training loss."),
            ("train_accuracy", "Latest accuracy on training batches, 0 to 1."),
            ("learning_rate", "Learning rate of the latest step."),
            ("gradient_norm", "Euclidean norm of the gradient of the latest step."),
        ):
            if name in progress.scalars:
                yield _gauge(f"ddp_bp_{name}", about, progress.scalars[name])
        if progress.evaluation is not None:
            yield _gauge("ddp_bp_eval_loss", "Loss of the latest evaluation.", progress.evaluation.loss)
            if progress.evaluation.accuracy is not None:
                about = "Accuracy of the latest evaluation, 0 to 1."
                yield _gauge("ddp_bp_eval_accuracy", about, progress.evaluation.accuracy)

    def _ranks(self) -> Iterator[Metric]:
        now = self._clock()
        ages = GaugeMetricFamily(
            "ddp_bp_last_step_age_seconds", "Time since a rank last reported a committed step.", labels=["rank"]
        )
        for rank, member in self._coordinator.roster:
            if member.step_at is not None:
                ages.add_metric([str(rank)], now - member.step_at)
        yield ages
        heard = GaugeMetricFamily(
            "ddp_bp_rank_heartbeat_age_seconds", "Time since anything was heard of a rank.", labels=["rank"]
        )
        suspected = GaugeMetricFamily(
            "ddp_bp_rank_suspected",
            "1 while a rank is silent, or stuck: it makes no progress, and others wait for it; by reason.",
            labels=["rank", "reason"],
        )
        suspicions = {(one.rank, one.reason) for one in self._coordinator.suspicions(now)}
        for rank, member in self._coordinator.roster:
            heard.add_metric([str(rank)], now - member.heard_at)
            for reason in REASONS:
                suspected.add_metric([str(rank), reason], float((rank, reason) in suspicions))
        yield heard
        yield suspected
        evictions = CounterMetricFamily("ddp_bp_evictions", "Ranks that were evicted, by reason.", labels=["reason"])
        for reason in REASONS:
            evictions.add_metric([reason], self._coordinator.lookout.evictions.num_evictions[reason])
        yield evictions
        for phase in PHASES:
            family = HistogramMetricFamily(f"ddp_bp_{phase}_seconds", _PHASE_HELP[phase], labels=["rank"])
            for rank, durations in sorted(self._coordinator.progress.durations.items()):
                if phase in durations:
                    total = durations[phase]
                    family.add_metric([str(rank)], _buckets(PHASE_BUCKETS_SECONDS, total.counts), total.sum_seconds)
            yield family

    def _checkpoints(self) -> Iterator[Metric]:
        record = self._coordinator.checkpoints.record
        results = CounterMetricFamily(
            "ddp_bp_checkpoints", "Checkpoints by result: ok, failed, or dropped for a newer one.", labels=["result"]
        )
        for result in ("ok", "failed", "dropped"):
            results.add_metric([result], record.results[result])
        yield results
        yield CounterMetricFamily("ddp_bp_checkpoint_bytes", "Bytes of checkpoints written.", value=record.num_bytes)
        family = HistogramMetricFamily(
            "ddp_bp_checkpoint_duration_seconds", "Time from a checkpoint's first message until it is durable."
        )
        buckets = _buckets(DURATION_BUCKETS_SECONDS, record.duration_counts)
        family.add_metric([], buckets, record.duration_sum_seconds)
        yield family
        if record.last_success_unix_seconds is not None:
            yield _gauge(
                "ddp_bp_checkpoint_last_success_timestamp_seconds",
                "Unix time at which the newest checkpoint became durable.",
                record.last_success_unix_seconds,
            )
        if record.last_bytes is not None:
            yield _gauge("ddp_bp_checkpoint_last_bytes", "Size of the newest checkpoint.", record.last_bytes)
        if record.last_step is not None:
            yield _gauge("ddp_bp_checkpoint_last_step", "Step of the newest checkpoint.", record.last_step)
        config = self._coordinator.config
        about = "Steps from one checkpoint that is due to the next; 0: none is due by steps."
        yield _gauge("ddp_bp_checkpoint_every_steps", about, config.checkpoint_every_steps)
        about = "Time from one checkpoint that is due to the next; 0: none is due by time."
        yield _gauge("ddp_bp_checkpoint_every_seconds", about, config.checkpoint_every_seconds or 0.0)

    def _storage(self) -> Iterator[Metric]:
        if self.room is not None:
            free, size = self.room
            yield _gauge("ddp_bp_run_directory_free_bytes", "Room left in the run directory's file system.", free)
            yield _gauge("ddp_bp_run_directory_size_bytes", "Size of the run directory's file system.", size)

    def _messages(self) -> Iterator[Metric]:
        coordinator = self._coordinator
        messages = CounterMetricFamily("ddp_bp_messages", "Messages received, by type.", labels=["type"])
        for name, count in sorted(coordinator.num_messages.items()):
            messages.add_metric([name], count)
        yield messages
        yield CounterMetricFamily(
            "ddp_bp_messages_rejected",
            "Messages that were unreadable, out of place or from strangers.",
            value=coordinator.num_rejected,
        )
        failures = CounterMetricFamily(
            "ddp_bp_disk_failures", "Writes that failed, by what was written.", labels=["job"]
        )
        for job in ("ledger", "metrics", "faults", "checkpoint", "summary"):
            failures.add_metric([job], coordinator.durability.num_failures[job])
        yield failures
        yield CounterMetricFamily(
            "ddp_bp_ledger_gaps",
            "Runs of steps that turned out to have no lines in the ledger.",
            value=coordinator.durability.num_ledger_gaps,
        )


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, about, value=value)


def _buckets(bounds: tuple[float, ...], counts: list[int]) -> list[tuple[str, float]]:
    """Counts per bucket as Prometheus wants them: each with everything below it."""
    return list(zip([*map(str, bounds), "+Inf"], accumulate(counts), strict=True))
