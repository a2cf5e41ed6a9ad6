"""The training step of a job on one rank, put together: the same for training and for measuring it."""

from __future__ import annotations

from collections.abc import Callable

from ddp_bp.data.batches import Batches
from ddp_bp.parallel.agreement import Agreement
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.exchange import Exchange
from ddp_bp.parallel.membership import shard_run
from ddp_bp.worker.assemble import Job
from ddp_bp.worker.phases import PhaseClock
from ddp_bp.worker.step import TrainingStep


def compose_step(
    communicator: Communicator,
    job: Job,
    exchange: Exchange,
    clock: PhaseClock,
    on_failure: Callable[[BaseException, int], None],
) -> TrainingStep:
    """The step of `job` on this rank; see `TrainingStep` for the last three. Call on all ranks alike."""
    plan = job.plan
    return TrainingStep(
        objective=job.objective,
        batches=Batches(job.data.train, plan, job.data.augment),
        shards=shard_run(plan.num_shards, communicator.size, communicator.rank),
        parameters=job.parameters,
        optimizer=job.optimizer,
        agreement=Agreement(communicator, plan.num_shards, job.layout),
        exchange=exchange,
        clock=clock,
        on_failure=on_failure,
    )
