"""What one rank has been asked for, by signals and by the coordinator: to stop, or to save a checkpoint.

No rank acts on a wish alone: each step's agreement carries all wishes to all ranks, as bits. Knows no step.
"""

from __future__ import annotations

from ddp_bp.wire.messages import Acknowledged, CheckpointDone, Stop, StopRequest, TakeCheckpoint
from ddp_bp.worker.checkpointing import Checkpointing
from ddp_bp.worker.link import CoordinatorLink
from ddp_bp.worker.reporter import Reporter
from ddp_bp.worker.requests import STOP_REQUESTS, STOP_SIGNALS, Request


class Wishes:
    """Those that have come so far. `stop` may be called from a signal handler."""

    def __init__(self, link: CoordinatorLink, reporter: Reporter) -> None:
        self._link, self._reporter = link, reporter
        self._stops = self._handed_on = Request(0)
        self.checkpoint = ""
        """The name of the checkpoint that the coordinator waits for, empty if it waits for none."""

    def stop(self, reason: str) -> None:
        """Somebody wishes an end at the next step that all ranks agree on; `reason` is one of `STOP_REQUESTS`."""
        self._stops |= STOP_REQUESTS[reason]

    def coordinator_is_back(self) -> None:
        """One that takes another one's place may not have heard of a stop."""
        self._handed_on = Request(0)

    def attend(self) -> None:
        """Take in what the coordinator says, on a rank that waits to take another's place.

        A signal to this one is handed on to it, since no step's agreement carries that to the others.
        """
        for message in self._link.take():
            if isinstance(message, Stop):
                self.stop(message.reason)
                self._handed_on |= STOP_REQUESTS[message.reason]
        for name in STOP_SIGNALS:
            if STOP_REQUESTS[name] & self._stops & ~self._handed_on:
                self._handed_on |= STOP_REQUESTS[name]
                self._link.post(StopRequest(name))

    def take_in(self, checkpointing: Checkpointing) -> Request:
        """Take in what the coordinator says, on a rank that trains; what this rank has to ask of all."""
        for message in self._link.take():
            match message:
                case Stop(reason=reason):
                    self.stop(reason)
                case TakeCheckpoint(request_id=request_id):
                    self.checkpoint = request_id
                case CheckpointDone():
                    checkpointing.done(message)
                case Acknowledged(of="ledger", step=int(step)):
                    self._reporter.ledger_is_durable(step)
                case _:
                    pass
        wishes = self._stops
        if self.checkpoint:
            wishes |= Request.CHECKPOINT
        if checkpointing.in_flight:
            wishes |= Request.CHECKPOINT_IN_FLIGHT
        return wishes
