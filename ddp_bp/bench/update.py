"""Reduce and update in one pass: the sum over ranks and an Adam step, by the bytes that both together must move."""

from __future__ import annotations

import numpy as np

from ddp_bp.engine import Parameter
from ddp_bp.engine.buffers import Buffers
from ddp_bp.engine.flat import FlatParameters
from ddp_bp.optim import Adam
from ddp_bp.parallel.arena import Arena
from ddp_bp.parallel.communicator import Array, Communicator
from ddp_bp.parallel.exchange import Exchange
from ddp_bp.parallel.holdings import of_shard_runs
from ddp_bp.parallel.journal import Journal
from ddp_bp.parallel.nodes import Nodes
from ddp_bp.wire.phases import PHASE_BUCKETS_SECONDS
from ddp_bp.worker.phases import PhaseClock
from ddp_bp.worker.update import Update, copied_vectors, piece_elements

_FLOAT32_BYTES = 4
_PATTERN_ELEMENTS = 2**16


def bytes_moved(num_parameters: int, num_partials: int) -> int:
    """What summing `num_partials` gradients and an Adam step must move at least, by all ranks of one node together.

    For each float32 parameter: read the partials, the parameter and Adam's two averages; write these three.
    """
    return num_parameters * _FLOAT32_BYTES * (num_partials + 6)


def build_update(communicator: Communicator, nodes: Nodes, num_parameters: int) -> tuple[Update, Array]:
    """An update as training has one, with one shard a rank, whose partials are ready; and this rank's. Collective."""
    flat = FlatParameters([Parameter(np.zeros(num_parameters, np.float32))])
    optimizer = Adam(flat, lr=1e-3)
    arena = Arena(communicator, nodes)
    stack, holdings = of_shard_runs(arena, num_parameters, communicator.size, np.float32)
    exchange = Exchange(communicator, nodes, num_parameters, communicator.size, holdings)
    flat.move_to(arena.allocate("parameters", num_parameters, np.float32))
    optimizer.move_to(arena.allocate)
    pattern = np.random.default_rng(communicator.rank).standard_normal(_PATTERN_ELEMENTS, np.float32)
    gradient = stack[0]
    for start in range(0, num_parameters, _PATTERN_ELEMENTS):
        piece = gradient[start : start + _PATTERN_ELEMENTS]
        piece[:] = pattern[: piece.size]
    communicator.barrier()
    num_copies = len(copied_vectors(flat, optimizer, None))
    journal = Journal(arena, 0, num_copies, piece_elements(optimizer, exchange.longest_slice), np.float32)
    update = Update(
        parameters=flat,
        buffers=Buffers([]),
        optimizer=optimizer,
        exchange=exchange,
        moves=np.empty(0, np.float32),
        journal=journal,
        communicator=communicator,
        clock=PhaseClock(PHASE_BUCKETS_SECONDS),
    )
    return update, gradient
