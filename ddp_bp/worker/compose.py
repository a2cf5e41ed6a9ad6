"""What one rank needs to take the steps of a job, put together: the same for training and for measuring it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ddp_bp.data.batches import Batches
from ddp_bp.engine.buffers import Buffers
from ddp_bp.optim import ExponentialMovingAverage
from ddp_bp.parallel.agreement import Agreement
from ddp_bp.parallel.arena import Arena
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.exchange import Exchange
from ddp_bp.parallel.holdings import of_shard_runs
from ddp_bp.parallel.nodes import Nodes, find_nodes
from ddp_bp.worker.assemble import Job
from ddp_bp.worker.audit import Audit
from ddp_bp.worker.comparison import Comparison
from ddp_bp.worker.evaluation import Evaluation
from ddp_bp.worker.phases import PhaseClock
from ddp_bp.worker.shards import ShardComputation
from ddp_bp.worker.snapshot import Snapshot
from ddp_bp.worker.step import TrainingStep
from ddp_bp.worker.update import Update


@dataclass(frozen=True)
class Composition:
    """The step of one rank and its two halves, what checks it, and views of its state."""

    step: TrainingStep
    shards: ShardComputation
    update: Update
    snapshot: Snapshot
    buffers: Buffers
    comparison: Comparison
    evaluation: Evaluation | None


def compose(
    communicator: Communicator, job: Job, clock: PhaseClock, on_failure: Callable[[BaseException, int], None]
) -> Composition:
    """Put together the step of `job` on this rank; see `TrainingStep` for the last two. Call on all ranks alike."""
    plan, recipe = job.plan, job.recipe
    buffers = Buffers(job.objective.model.named_buffers())
    size = job.parameters.size + buffers.size
    alone = recipe.exchange.algorithm == "messages"
    nodes = Nodes(list(range(communicator.size))) if alone else find_nodes(communicator)
    arena = Arena(communicator, nodes)
    stack, holdings = of_shard_runs(arena, size, plan.num_shards, job.parameters.dtype)
    exchange = Exchange(communicator, nodes, size, plan.num_shards, holdings)
    job.parameters.move_to(arena.allocate("parameters", job.parameters.size, job.parameters.dtype))
    job.optimizer.move_to(arena.allocate)
    decay = recipe.train.ema_decay
    average = None if decay is None else ExponentialMovingAverage(job.parameters, decay, allocate=arena.allocate)
    agreement = Agreement(communicator, plan.num_shards, job.layout)
    batches = Batches(job.data.train, plan, job.data.augment)
    shards = ShardComputation(job.objective, batches, job.parameters, buffers, agreement, communicator, clock, stack)
    update = Update(
        parameters=job.parameters,
        buffers=buffers,
        optimizer=job.optimizer,
        exchange=exchange,
        moves=arena.allocate("moves", buffers.size, job.parameters.dtype),
        communicator=communicator,
        clock=clock,
        clip_norm=recipe.optimizer.clip_norm,
        clip_value=recipe.optimizer.clip_value,
        average=average,
    )
    every_steps = recipe.fault.compare_every_steps
    comparison = Comparison(communicator, nodes, job.parameters, buffers, job.optimizer, average, every_steps)
    step = TrainingStep(
        plan=plan,
        shards=shards,
        audit=Audit(shards, plan, communicator, recipe.fault.audit),
        comparison=comparison,
        update=update,
        agreement=agreement,
        clock=clock,
        on_failure=on_failure,
    )
    snapshot = Snapshot(
        job.objective.model, job.parameters, job.optimizer, buffers, average, exchange.bounds, communicator.rank
    )
    evaluation = None
    if job.data.evaluation is not None:
        evaluation = Evaluation(
            job.objective,
            job.data.evaluation,
            recipe.train.eval_batch_size,
            communicator,
            job.layout,
            on_failure,
            update.evaluated_weights,
            buffers,
            plan.seed,
        )
    return Composition(step, shards, update, snapshot, buffers, comparison, evaluation)
