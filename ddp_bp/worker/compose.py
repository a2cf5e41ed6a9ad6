"""What one rank needs to take the steps of a job, put together: the same for training and for measuring it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from ddp_bp.data.batches import Batches
from ddp_bp.engine.buffers import Buffers
from ddp_bp.parallel.agreement import check_layout
from ddp_bp.parallel.arena import Arena
from ddp_bp.parallel.bucket_choice import NO_BUCKETS, BucketChoice, choose_buckets
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.membership import shard_run
from ddp_bp.parallel.nodes import Nodes, find_nodes
from ddp_bp.worker.assemble import Job
from ddp_bp.worker.compression import Compression
from ddp_bp.worker.crew import Crew
from ddp_bp.worker.evaluation import Evaluation
from ddp_bp.worker.phases import PhaseClock
from ddp_bp.worker.snapshot import Snapshot
from ddp_bp.worker.team import Team, Trained, build_team, place_state


@dataclass(frozen=True)
class Composition:
    """A team, what evaluates what it holds, and views of its state."""

    team: Team
    snapshot: Snapshot
    evaluation: Evaluation | None


def compose(
    communicator: Communicator, job: Job, clock: PhaseClock, on_failure: Callable[[BaseException, int], None]
) -> Composition:
    """Put together the step of `job` on this rank; see `Trained` for the last two. Call on all ranks alike."""
    crew = find_crew(communicator, job)
    return first_composition(crew, prepare_training(crew, job, clock, on_failure), job)


def find_crew(communicator: Communicator, job: Job, num_spares: int = 0) -> Crew:
    """Which ranks of `communicator` share memory; the last `num_spares` of them wait. Collective.

    Raises DisagreementError on all ranks if they are not about to train the same.
    """
    alone = job.recipe.exchange.algorithm == "messages"
    nodes = Nodes(list(range(communicator.size))) if alone else find_nodes(communicator)
    # Before anything is sent whose size follows from the parameters.
    check_layout(communicator, job.layout)
    return Crew(communicator, nodes, num_spares)


def prepare_training(
    crew: Crew, job: Job, clock: PhaseClock, on_failure: Callable[[BaseException, int], None]
) -> Trained:
    """What is trained, in memory that the ranks of a node share, spares among them. Call on all ranks alike."""
    recipe, communicator = job.recipe, crew.communicator
    buffers = Buffers(job.objective.model.named_buffers())
    arena = Arena(communicator, crew.nodes)
    average, moves = place_state(arena, job.parameters, job.optimizer, buffers, recipe.train.ema_decay)
    compression = None
    if recipe.exchange.compression == "bf16":
        num_shards = job.plan.num_shards
        errors = arena.allocate("compression errors", (num_shards, job.parameters.size), job.parameters.dtype)
        compression = Compression(errors, shard_run(num_shards, communicator.size, communicator.rank))
    buckets = NO_BUCKETS
    if crew.team_communicator is not None:
        buckets = choose_buckets(
            crew.team_communicator,
            crew.nodes_of(crew.working),
            job.parameters.size,
            job.parameters.dtype.itemsize,
            recipe.exchange.overlap,
            recipe.exchange.bucket_bytes,
            is_compressed=compression is not None,
        )
    if crew.waiting:
        told = communicator.allgather_bytes(msgspec.json.encode(buckets))[0]
        buckets = BucketChoice(*msgspec.json.decode(told, type=tuple[int, bool, str]))
    return Trained(
        objective=job.objective,
        batches=Batches(job.data.train, job.plan, job.data.augment),
        parameters=job.parameters,
        buffers=buffers,
        optimizer=job.optimizer,
        average=average,
        moves=moves,
        layout=job.layout,
        clock=clock,
        on_failure=on_failure,
        clip_norm=recipe.optimizer.clip_norm,
        clip_value=recipe.optimizer.clip_value,
        audit=recipe.fault.audit,
        compare_every_steps=recipe.fault.compare_every_steps,
        buckets=buckets,
        compression=compression,
        # What rounding has taken away from the gradients of a dead rank is lost with it.
        recovers=communicator.can_lose_ranks and recipe.fault.recovery == "auto" and compression is None,
    )


def first_composition(crew: Crew, trained: Trained, job: Job) -> Composition:
    """The first team, of which this rank is. Collective among these."""
    communicator = crew.team_communicator
    assert communicator is not None
    return around(build_team(trained, communicator, crew.nodes_of(crew.working)), job)


def around(team: Team, job: Job) -> Composition:
    """What there is besides a team that takes the steps of `job`. Not collective."""
    trained, communicator = team.trained, team.communicator
    snapshot = Snapshot(
        job.objective.model,
        trained.parameters,
        trained.optimizer,
        trained.buffers,
        trained.average,
        team.saved_bounds,
        communicator.rank,
        trained.compression,
    )
    evaluation = None
    if job.data.evaluation is not None:
        evaluation = Evaluation(
            job.objective,
            job.data.evaluation,
            job.recipe.train.eval_batch_size,
            communicator,
            job.layout,
            trained.on_failure,
            team.update.evaluated_weights,
            trained.buffers,
            job.plan.seed,
        )
    return Composition(team, snapshot, evaluation)
