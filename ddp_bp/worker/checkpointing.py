"""Sending checkpoints: when one is due, copy the state aside, and let the link send it while training goes on.

One checkpoint is under way at a time; a rank that is still sending says so in the next agreement, and all ranks put off
what is due. The coordinator writes; this module knows no disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ddp_bp.errors import DistributedError
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.recipes.schema import identity
from ddp_bp.wire.messages import (
    CHUNK_BYTES,
    CheckpointBegin,
    CheckpointChunk,
    CheckpointDone,
    CheckpointEnd,
)
from ddp_bp.worker.assemble import Job, versions
from ddp_bp.worker.ledger import Ledger
from ddp_bp.worker.link import CoordinatorLink, Outgoing
from ddp_bp.worker.progress import Progress
from ddp_bp.worker.snapshot import Snapshot

# How long the coordinator may be silent, heartbeats included, while the job waits for it to write.
SILENCE_SECONDS = 30.0


class Checkpointing:
    """One rank's part in the checkpoints of a run. Methods that begin one are to be called on all ranks alike."""

    def __init__(
        self,
        job: Job,
        snapshot: Snapshot,
        progress: Progress,
        ledger: Ledger,
        communicator: Communicator,
        link: CoordinatorLink,
        recipe_sha256: str,
    ) -> None:
        self._job, self._snapshot, self._progress, self._ledger = job, snapshot, progress, ledger
        self._communicator, self._link = communicator, link
        self._recipe_sha256 = recipe_sha256
        self._in_flight: str | None = None
        self._sent: tuple[str, str, dict[str, Any]] = ("", "", {})

    @property
    def in_flight(self) -> bool:
        """Whether this rank still waits for the outcome of its last checkpoint."""
        return self._in_flight is not None

    def begin(self, request_id: str, answers: str = "") -> None:
        """Copy the state aside and start to send it. The step stands still for one memory copy.

        `answers`: on rank 0, the coordinator's own name of the request that this checkpoint satisfies.
        """
        self._snapshot.capture()
        self._in_flight = request_id
        self._sent = request_id, answers, self._manifest()
        self._link.post_stream(self._messages(*self._sent))

    def send_again(self) -> None:
        """After a lost connection: send the whole of the checkpoint under way, if there is one, from its copy."""
        if self._in_flight is not None:
            self._link.post_stream(self._messages(*self._sent))

    def done(self, message: CheckpointDone) -> None:
        """Take note of the outcome that the coordinator reports."""
        if message.request_id == self._in_flight:
            self._in_flight = None

    def wait(self) -> CheckpointDone | None:
        """Wait for the outcome of the checkpoint under way, if there is one.

        Raises DeadlineError if the coordinator falls silent.
        """
        if self._in_flight is None:
            return None
        wanted = self._in_flight
        done = self._link.wait(
            lambda message: message if isinstance(message, CheckpointDone) and message.request_id == wanted else None,
            SILENCE_SECONDS,
            f"the outcome of checkpoint {wanted}",
        )
        self._in_flight = None
        return done

    def save_now(self, request_id: str, answers: str = "", *, is_last_try: bool = True) -> CheckpointDone:
        """Finish what is under way, send the current state, and wait until it is on the disk; see `begin`.

        Returns:
            The outcome. Before the last try it may be not `ok`.

        Raises:
            DistributedError: the coordinator could not write it, at the last try.
            DeadlineError: the coordinator fell silent.
        """
        self.wait()
        self.begin(request_id, answers)
        done = self.wait()
        assert done is not None
        if not done.ok and is_last_try:
            raise DistributedError(
                f"rank {self._communicator.rank}: the checkpoint of step {self._progress.step} was not saved: "
                f"{done.message}"
            )
        return done

    def _manifest(self) -> dict[str, Any]:
        """The fields of the checkpoint's manifest that the worker knows. Only rank 0's are kept."""
        progress, plan = self._progress, self._job.plan
        epoch, step_in_epoch = plan.position(progress.step)
        return {
            "step": progress.step,
            "epoch": epoch,
            "step_in_epoch": step_in_epoch,
            "samples": progress.samples,
            "seed": plan.seed,
            "shards": plan.num_shards,
            "world_size": self._communicator.size,
            "recipe_sha256": self._recipe_sha256,
            "ledger_sha256": self._ledger.chain_sha256,
            "train_loss": _finite(progress.last_train_loss),
            "eval_loss": _finite(progress.eval_loss),
            "eval_accuracy": progress.eval_accuracy,
            "buffers": self._snapshot.buffer_names,
            "tied": self._snapshot.tied,
            "versions": versions(),
            "extra": {
                "recipe": identity(self._job.recipe),
                "data": self._job.data_digests,
                **progress.extra(),
                **(self._samples() if self._communicator.rank == 0 else {}),
            },
        }

    def _samples(self) -> dict[str, Any]:
        """What a script must know of samples to predict with the weights. No run that goes on from them reads it."""
        data = self._job.data
        if data.conversion is None:
            return {}
        return {"samples": {**data.conversion.description(), "vocabulary": data.vocabulary}}

    def _messages(self, request_id: str, answers: str, manifest: dict[str, Any]) -> Iterator[Outgoing]:
        rank = self._communicator.rank
        yield (
            CheckpointBegin(request_id, rank, self._communicator.size, manifest, self._snapshot.layouts(), answers),
            (),
        )
        for array, offset, payload in self._snapshot.pieces(CHUNK_BYTES):
            if self._in_flight != request_id:
                # It has come to an end meanwhile, such as for a newer one, and other messages wait behind the rest.
                return
            yield CheckpointChunk(request_id, rank, array, offset), (payload,)
        yield CheckpointEnd(request_id, rank), ()


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
