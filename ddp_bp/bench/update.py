"""Reduce and update in one pass: the sum over ranks and an Adam step, by the bytes that both together must move."""

from __future__ import annotations

import numpy as np

from ddp_bp.engine import Parameter
from ddp_bp.engine.buffers import Buffers
from ddp_bp.engine.flat import FlatParameters
from ddp_bp.optim import Adam
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.exchange import Exchange
from ddp_bp.parallel.nodes import Nodes
from ddp_bp.wire.phases import PHASE_BUCKETS_SECONDS
from ddp_bp.worker.phases import PhaseClock
from ddp_bp.worker.update import Update

_FLOAT32_BYTES = 4
_PATTERN_ELEMENTS = 2**16


def bytes_moved(num_parameters: int, num_partials: int) -> int:
    """What summing `num_partials` gradients and an Adam step must move at least, by all ranks of one node together.

    For each float32 parameter: read the partials, the parameter and Adam's two averages; write these three.
    """
    return num_parameters * _FLOAT32_BYTES * (num_partials + 6)


def build_update(communicator: Communicator, nodes: Nodes, num_parameters: int) -> Update:
    """An update as training has one, with one shard a rank, whose partials are ready. Collective."""
    flat = FlatParameters([Parameter(np.zeros(num_parameters, np.float32))])
    optimizer = Adam(flat, lr=1e-3)
    exchange = Exchange(communicator, nodes, num_parameters, communicator.size, np.float32)
    flat.move_to(exchange.allocate("parameters", num_parameters, np.float32))
    optimizer.move_to(exchange.allocate)
    pattern = np.random.default_rng(communicator.rank).standard_normal(_PATTERN_ELEMENTS, np.float32)
    gradient = exchange.partials[0]
    for start in range(0, num_parameters, _PATTERN_ELEMENTS):
        piece = gradient[start : start + _PATTERN_ELEMENTS]
        piece[:] = pattern[: piece.size]
    communicator.barrier()
    return Update(
        parameters=flat,
        buffers=Buffers([]),
        optimizer=optimizer,
        exchange=exchange,
        communicator=communicator,
        clock=PhaseClock(PHASE_BUCKETS_SECONDS),
    )
