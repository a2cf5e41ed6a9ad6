"""Putting back the state that a checkpoint was made of, on all ranks: the same for resuming and for replaying."""

from __future__ import annotations

import msgspec

from ddp_bp.checkpoint import Checkpoint
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.worker.assemble import Job
from ddp_bp.worker.failures import together
from ddp_bp.worker.ledger import Ledger
from ddp_bp.worker.progress import Progress
from ddp_bp.worker.snapshot import Snapshot


def first_state(job: Job) -> tuple[Progress, str]:
    """The progress and the ledger's head before the first step."""
    plan = job.plan
    return Progress(), Ledger.genesis(plan.seed, plan.num_samples, plan.batch_size, plan.num_shards)


def restore(
    communicator: Communicator, job: Job, snapshot: Snapshot, checkpoint: Checkpoint | None
) -> tuple[Progress, str]:
    """The progress and the ledger's head to go on from, after a checkpoint's arrays have been put in place. Collective.

    `checkpoint`: what rank 0 has read; None on the others.

    Raises:
        RankFailure, RemoteError: it is of another model or optimizer.
    """

    def read() -> bytes:
        if checkpoint is None:
            return b""
        snapshot.check(checkpoint.model, checkpoint.optimizer)
        return msgspec.json.encode((Progress.of(checkpoint.manifest), checkpoint.manifest.ledger_sha256))

    packed = communicator.allgather_bytes(together(communicator, read))[0]
    progress, chain = msgspec.json.decode(packed, type=tuple[Progress, str])
    snapshot.restore(
        checkpoint.model if checkpoint else {},
        checkpoint.optimizer if checkpoint else {},
        progress.updates,
        communicator,
    )
    job.schedule.restore(progress.schedule, progress.step)
    return progress, chain or first_state(job)[1]
