"""The ranks that take a step together, and what each of them needs for it: built anew whenever a rank is lost.

What is trained (`Trained`) stays where it is meanwhile. Knows neither recipes nor the coordinator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ddp_bp.data import ShardPlan
from ddp_bp.data.batches import Batches
from ddp_bp.engine.buffers import Buffers
from ddp_bp.engine.flat import FlatParameters
from ddp_bp.optim import ExponentialMovingAverage, Optimizer
from ddp_bp.parallel.agreement import Agreement, Verdict, row_size
from ddp_bp.parallel.arena import Arena
from ddp_bp.parallel.bucket_choice import NO_BUCKETS, BucketChoice
from ddp_bp.parallel.bucket_exchange import BucketExchange
from ddp_bp.parallel.buckets import cut_buckets
from ddp_bp.parallel.communicator import Array, Bounds, Communicator
from ddp_bp.parallel.exchange import Exchange
from ddp_bp.parallel.holdings import Holdings, of_shard_runs
from ddp_bp.parallel.journal import Begun, Journal, Stage
from ddp_bp.parallel.nodes import Nodes
from ddp_bp.worker.audit import Audit
from ddp_bp.worker.comparison import Comparison
from ddp_bp.worker.compression import Compression
from ddp_bp.worker.early import EarlyCarry
from ddp_bp.worker.objective import Objective
from ddp_bp.worker.phases import PhaseClock
from ddp_bp.worker.shards import ShardComputation
from ddp_bp.worker.step import TrainingStep
from ddp_bp.worker.update import Update, copied_vectors, needs_norms, piece_elements


@dataclass(frozen=True)
class Trained:
    """What is trained, how, and where it lies: parameters, optimizer state, average and `moves` (B,) in memory that the
    ranks of a node share.

    layout: a fingerprint of what must be equal on all ranks. audit: the fraction of shards that are computed twice.
    compare_every_steps: after how many steps ranks compare what they hold; 0: never.
    buckets: how gradients are exchanged between nodes. compression: how they are rounded.
    recovers: whether those that are left are to go on when a rank dies, where the communicator can.
    on_failure: shows a rank's own error, given the step, before the others stop.
    """

    objective: Objective
    batches: Batches
    parameters: FlatParameters
    buffers: Buffers
    optimizer: Optimizer
    average: ExponentialMovingAverage | None
    moves: Array
    layout: int
    clock: PhaseClock
    on_failure: Callable[[BaseException, int], None]
    clip_norm: float | None = None
    clip_value: float | None = None
    audit: float = 0.0
    compare_every_steps: int = 0
    buckets: BucketChoice = NO_BUCKETS
    compression: Compression | None = None
    recovers: bool = True

    @property
    def plan(self) -> ShardPlan:
        return self.batches.plan

    @property
    def vector_size(self) -> int:
        """Elements of a partial: those of the parameters, and of the buffers' moves."""
        return self.parameters.size + self.buffers.size

    @property
    def num_rounded(self) -> int:
        """Elements of a partial, from the first, that are rounded, and their sums as well."""
        return 0 if self.compression is None else self.compression.num_elements


@dataclass(frozen=True)
class Team:
    """The ranks of a communicator, and one rank's objects among them.

    verdict, pending: what was agreed on of the step that this team is there to finish, and which elements of this
        node were not updated when it began; None for one that takes steps.
    """

    trained: Trained
    communicator: Communicator
    nodes: Nodes
    holdings: Holdings
    exchange: Exchange | BucketExchange
    journal: Journal
    update: Update
    shards: ShardComputation
    step: TrainingStep
    verdict: Verdict | None = None
    pending: tuple[Bounds, ...] | None = None

    @property
    def saved_bounds(self) -> Bounds:
        """The elements [lo, hi) of the state that this rank hands in for a checkpoint."""
        lo, hi = self.exchange.bounds
        return (lo, hi) if self.exchange.is_first_copy else (lo, lo)


def place_state(
    arena: Arena, parameters: FlatParameters, optimizer: Optimizer, buffers: Buffers, ema_decay: float | None
) -> tuple[ExponentialMovingAverage | None, Array]:
    """Move what is trained into memory that the ranks of a node share; the average, and the moves of buffers (B,).

    Collective.
    """
    parameters.move_to(arena.allocate("parameters", parameters.size, parameters.dtype))
    optimizer.move_to(arena.allocate)
    average = None
    if ema_decay is not None:
        average = ExponentialMovingAverage(parameters, ema_decay, allocate=arena.allocate)
    return average, arena.allocate("moves", buffers.size, parameters.dtype)


def brief(trained: Trained, communicator: Communicator, root: int) -> None:
    """Give those that have just joined what rank `root` has and their node's memory has not. Collective.

    Between two steps, and without effect on ranks that stand where `root` stands.
    """
    optimizer, average, buffers = trained.optimizer, trained.average, trained.buffers
    counts = np.array([optimizer.num_steps, average.num_updates if average else 0], np.int64)
    communicator.broadcast(counts, root)
    optimizer.num_steps = int(counts[0])
    if average is not None:
        average.num_updates = int(counts[1])
    for values in buffers.committed:
        communicator.broadcast(values, root)
    buffers.begin()
    trained.parameters.mark_changed()


def build_team(
    trained: Trained,
    communicator: Communicator,
    nodes: Nodes,
    *,
    num_steps: int = 0,
    ranges: Sequence[Bounds] | None = None,
) -> Team:
    """A team that takes steps, `num_steps` of which have been committed. Collective.

    `ranges`: by node, which elements its ranks update; by default in proportion to their number. With `trained.buckets`
    every node updates all.
    """
    # Those of the team before, whose memory would stay with them.
    trained.parameters.forget_buffers()
    arena, plan = Arena(communicator, nodes), trained.plan
    stack, holdings = of_shard_runs(arena, trained.vector_size, plan.num_shards, trained.parameters.dtype)
    early, exchange = None, _exchange(trained, arena, holdings, ranges)
    if isinstance(exchange, BucketExchange):
        early = EarlyCarry(exchange, trained.num_rounded)
    journal = _journal(trained, arena, exchange, (num_steps - 1, Stage.COMMITTED))
    update = _update(trained, communicator, exchange, journal)
    agreement = Agreement(communicator, plan.num_shards, trained.layout, journal.row)
    shards = ShardComputation(
        trained.objective,
        trained.batches,
        trained.parameters,
        trained.buffers,
        agreement,
        communicator,
        trained.clock,
        stack,
        early,
        trained.compression,
    )
    step = TrainingStep(
        plan=plan,
        shards=shards,
        audit=Audit(shards, plan, communicator, trained.audit),
        comparison=Comparison(
            communicator,
            nodes,
            trained.parameters,
            trained.buffers,
            trained.optimizer,
            trained.average,
            trained.compare_every_steps,
        ),
        exchange=exchange,
        update=update,
        agreement=agreement,
        journal=journal,
        clock=trained.clock,
        on_failure=trained.on_failure,
    )
    return Team(trained, communicator, nodes, holdings, exchange, journal, update, shards, step)


def build_finishing_team(
    base: Team,
    communicator: Communicator,
    nodes: Nodes,
    ranges: Sequence[Bounds],
    holdings: Holdings,
    pending: Sequence[Bounds],
    begun: Sequence[Begun],
    verdict: Verdict,
    step: int,
) -> Team:
    """A team that takes the step `step` of `base` on from where that stood. Collective.

    `holdings`: of partials, which are complete; `pending`: what has not been updated yet of the elements that belong to
    this node; `begun`: which entries of it were being written, and how far.
    """
    trained, arena = base.trained, Arena(communicator, nodes)
    exchange = Exchange(
        communicator,
        nodes,
        trained.vector_size,
        trained.plan.num_shards,
        holdings,
        ranges=ranges,
        # Norms are over everything, whatever has been updated since.
        pending=None if needs_norms(trained.optimizer, trained.clip_norm) else pending,
    )
    journal = _journal(trained, arena, exchange, (step, Stage.READY))
    update = _update(trained, communicator, exchange, journal, pending, begun)
    return Team(
        trained,
        communicator,
        nodes,
        holdings,
        exchange,
        journal,
        update,
        base.shards,
        base.step,
        verdict,
        tuple(pending),
    )


def _exchange(
    trained: Trained, arena: Arena, holdings: Holdings, ranges: Sequence[Bounds] | None
) -> Exchange | BucketExchange:
    communicator, nodes, size = arena.communicator, arena.nodes, trained.vector_size
    if not trained.buckets.num_elements or len(nodes.ranks) == 1:
        return Exchange(
            communicator,
            nodes,
            size,
            trained.plan.num_shards,
            holdings,
            ranges=ranges,
            num_rounded=trained.num_rounded,
        )
    return BucketExchange(
        communicator,
        nodes,
        trained.plan.num_shards,
        holdings,
        arena.allocate("totals", size, trained.parameters.dtype),
        cut_buckets(trained.parameters.size, size, trained.buckets.num_elements),
        in_background=trained.buckets.in_background,
        num_rounded=trained.num_rounded,
    )


def _journal(
    trained: Trained, arena: Arena, exchange: Exchange | BucketExchange, position: tuple[int, Stage]
) -> Journal:
    return Journal(
        arena,
        row_size(trained.plan.num_shards, arena.communicator.size),
        len(copied_vectors(trained.parameters, trained.optimizer, trained.average)),
        piece_elements(trained.optimizer, exchange.longest_slice),
        trained.parameters.dtype,
        position,
        is_read=trained.recovers,
    )


def _update(
    trained: Trained,
    communicator: Communicator,
    exchange: Exchange | BucketExchange,
    journal: Journal,
    pending: Sequence[Bounds] | None = None,
    begun: Sequence[Begun] = (),
) -> Update:
    return Update(
        parameters=trained.parameters,
        buffers=trained.buffers,
        optimizer=trained.optimizer,
        exchange=exchange,
        moves=trained.moves,
        journal=journal,
        communicator=communicator,
        clock=trained.clock,
        clip_norm=trained.clip_norm,
        clip_value=trained.clip_value,
        average=trained.average,
        pending=pending,
        begun=begun,
        compression=trained.compression,
    )
