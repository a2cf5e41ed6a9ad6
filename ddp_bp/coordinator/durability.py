"""What of the ledger and the summary is on the disk, what is to be tried again, and what rank 0 may be told of it.

Also counts every write that failed. Checkpoints have a desk of their own; this module knows neither the state of the
job nor who is connected.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from ddp_bp.coordinator.events import AppendLedger, DiskFailed, DiskJob, LedgerWritten, Log
from ddp_bp.wire.messages import Acknowledged

LEDGER_RETRY_SECONDS: Final = 1.0


class Durability:
    """Follows the disk's answers.

    ledger     what rank 0 is to be told of the ledger, None before any line is known to be durable
    summary    what rank 0 is to be told of the summary, None before it was written or failed to be
    """

    def __init__(self) -> None:
        self.num_failures: Counter[DiskJob] = Counter()
        self.num_ledger_gaps = 0
        self.ledger: Acknowledged | None = None
        self.summary: Acknowledged | None = None
        self._retry_at: float | None = None
        self._had_last_try = False

    @property
    def lost(self) -> bool:
        """Something was handed over and is not on the disk."""
        return self._retry_at is not None or (self.summary is not None and not self.summary.ok)

    def ledger_written(self, event: LedgerWritten) -> list[Log]:
        """All lines handed over are durable; steps without lines are told to the person who runs the job."""
        self._retry_at = None
        if event.last_step is not None:
            self.ledger = Acknowledged("ledger", step=event.last_step)
        self.num_ledger_gaps += len(event.gaps)
        return [
            Log(
                "warning",
                f"the ledger has no lines of steps {first} to {last}, which were lost between rank 0 and the "
                "coordinator; training goes on, but nothing proves which samples these steps used",
            )
            for first, last in event.gaps
        ]

    def summary_written(self) -> None:
        """The summary is durable."""
        self.summary = Acknowledged("finished")

    def failed(self, event: DiskFailed, now: float) -> list[Log]:
        """A write failed. Said once for each kind of write, and for the ledger once until it can be written again."""
        self.num_failures[event.job] += 1
        first_of_many = self.num_failures[event.job] == 1
        if event.job == "summary":
            self.summary = Acknowledged("finished", ok=False, message=event.error)
        if event.job == "ledger":
            first_of_many = self._retry_at is None
            self._retry_at = now + LEDGER_RETRY_SECONDS
        return [Log("error", f"{event.job} cannot be written: {event.error}")] if first_of_many else []

    def tick(self, now: float) -> list[AppendLedger]:
        """Tries a ledger that could not be written again, when it is time."""
        if self._retry_at is None or now < self._retry_at:
            return []
        self._retry_at = now + LEDGER_RETRY_SECONDS
        return [AppendLedger(())]

    def last_try(self) -> list[AppendLedger]:
        """Before the coordinator ends: tries a ledger that could not be written once more, and only once."""
        if self._retry_at is None or self._had_last_try:
            return []
        self._had_last_try = True
        return [AppendLedger(())]
