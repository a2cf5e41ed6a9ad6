"""All starts of a job, one after the other: again after a death, as long as the recipe allows, and whenever it is to
have another number of ranks. Between two of them nothing of it runs, and what is asked for meanwhile counts as well.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

from ddp_bp.cli.attempt import run_attempt
from ddp_bp.cli.job_start import JobStart
from ddp_bp.cli.on_hosts import HostCheck
from ddp_bp.cli.prepare import Prepared
from ddp_bp.cli.resize import Resizing, ranks_text
from ddp_bp.cli.run_hold import RunHold
from ddp_bp.cli.signals import stop_exit_code
from ddp_bp.cli.supervise import Attempt, Ending, History, Restarts
from ddp_bp.cli.view import TrainingView
from ddp_bp.coordinator.client import CoordinatorAddress
from ddp_bp.errors import CheckpointError, DdpError, HostError
from ddp_bp.worker.rundir import SUMMARY_FILE

POLL_SECONDS = 0.1


class Starts:
    """The starts of one job."""

    def __init__(
        self,
        first: JobStart,
        prepared: Prepared,
        hosts: HostCheck,
        asked: list[str],
        hold: RunHold,
        view: TrainingView,
    ) -> None:
        """`asked`: the signals that arrive meanwhile, and what word is left of with the `hold`."""
        self._prepared, self._hosts, self._view = prepared, hosts, view
        self._asked, self._hold = asked, hold
        self._fault = prepared.recipe.fault
        self._restarts = Restarts(0 if self._fault.recovery == "none" else self._fault.max_restarts)
        self._resizing, self._history = Resizing(self._fault), History()
        self._checkpoint = prepared.checkpoint
        # Times of one clock, the file system's, which need not be ours.
        self._known = {entry.path: entry.path.stat().st_mtime_ns for entry in prepared.run.store.entries()}
        self._address: CoordinatorAddress | None = None
        self._wanted = first
        # What to go back to, until as many ranks as are wanted have trained.
        self._before: JobStart | None = None

    @property
    def num_workers(self) -> int:
        """With how many ranks the job was to go on last."""
        return self._wanted.num_workers

    def run(self) -> Attempt:
        """Until the job is over: how it ended.

        Raises:
            DdpError: it cannot be started for the first time.
        """
        attempt = self._attempt(self._wanted)
        while True:
            try:
                following = self._next(attempt)
            except HostError as error:
                # They may be back when it is tried again.
                attempt = Attempt(Ending.DEATH, why=str(error))
                continue
            if isinstance(following, Attempt):
                return following
            attempt = self._attempt(following)

    def _attempt(self, start: JobStart) -> Attempt:
        path = self._checkpoint.path if self._checkpoint else None
        try:
            attempt, self._address = run_attempt(
                start, path, self._history, self._address, self._asked, self._hold, self._resizing, self._view
            )
        except DdpError as error:
            if self._history.num_starts == 0:
                raise
            return Attempt(Ending.DEATH, why=str(error))
        return attempt

    def _next(self, attempt: Attempt) -> JobStart | Attempt:
        """What is to be started after an attempt, or how the job has ended."""
        if attempt.has_trained:
            self._before = None
        if self._is_asked():
            return self._stopped(attempt)
        ending, step = attempt.ending, self._take_newest()
        if self._before is not None and ending in (Ending.DEATH, Ending.ERROR):
            self._count(attempt, num_resizes=1)
            self._go_back(attempt.why or "see above")
        elif ending is Ending.WELL and attempt.goes_on and not self._prepared.is_finished():
            self._count(attempt, num_resizes=1)
            self._resize(attempt.resize_to)
        elif ending is Ending.DEATH and self._restarts.allow(step):
            self._count(attempt, num_restarts=1)
            self._resize(attempt.resize_to)
            self._wait(attempt.why, step)
        else:
            return attempt
        if self._is_asked():
            return self._stopped(attempt)
        start = self._on_hosts()
        if start.num_workers < self._fault.min_workers:
            least = f"fewer than fault.min_workers = {self._fault.min_workers}"
            self._view.complain(f"ddp-bp: the hosts that are left take {ranks_text(start.num_workers)}, {least}")
            return replace(attempt, exit_code=1)
        if self._is_asked():
            return self._stopped(attempt)
        if ending is Ending.WELL:
            self._view.say(f"going on from step {step} with {ranks_text(start.num_workers)}")
        (self._prepared.run.path / SUMMARY_FILE).unlink(missing_ok=True)
        return start

    def _is_asked(self) -> bool:
        """Whether somebody wants the job to end."""
        self._hold.note_stop(self._asked)
        return bool(self._asked)

    def _stopped(self, attempt: Attempt) -> Attempt:
        """How the job has ended if somebody wants that after an attempt, or has wanted it before."""
        if attempt.ending is not Ending.DEATH:
            return attempt
        step = self._take_newest()
        newest = f"from step {step}" if self._checkpoint else "from its beginning"
        self._view.say(f"stopped after a death ({attempt.why}); the job goes on {newest}")
        return Attempt(Ending.ASKED, exit_code=stop_exit_code(self._asked))

    def _take_newest(self) -> int:
        """Go on from the newest valid checkpoint that was written since the job began, else from the one of before; its
        step."""
        store = self._prepared.run.store
        for entry in store.entries():
            if entry.path.stat().st_mtime_ns != self._known.get(entry.path):
                with contextlib.suppress(CheckpointError):
                    self._checkpoint = store.load(entry.path)
                    break
        return self._checkpoint.manifest.step if self._checkpoint else 0

    def _count(self, attempt: Attempt, *, num_restarts: int = 0, num_resizes: int = 0) -> None:
        if attempt.ending is Ending.WELL:
            num_recoveries = self._prepared.summary()["recoveries"]
        else:
            num_recoveries = self._history.num_recoveries + attempt.num_recoveries + num_restarts
        history = self._history
        self._history = History(history.num_restarts + num_restarts, history.num_resizes + num_resizes, num_recoveries)

    def _resize(self, num_workers: int | None) -> None:
        if num_workers is not None and num_workers != self._wanted.num_workers:
            self._before = self._wanted
            placement = self._wanted.placement.resized(num_workers)
            self._wanted = replace(self._wanted, placement=placement, num_workers=placement.num_ranks)

    def _go_back(self, why: str) -> None:
        """To the number of ranks before, since as many as are wanted cannot be had."""
        assert self._before is not None
        refused, self._wanted, self._before = self._wanted, self._before, None
        instead = f"going on with {ranks_text(self._wanted.num_workers)}, as before"
        self._view.complain(f"ddp-bp: {ranks_text(refused.num_workers)} could not be started: {why}; {instead}")

    def _on_hosts(self) -> JobStart:
        try:
            return self._hosts.next_start(self._wanted)
        except HostError as error:
            if self._before is None:
                raise
            self._go_back(str(error))
            return self._hosts.next_start(self._wanted)

    def _wait(self, why: str, step: int) -> None:
        """Before a restart that was allowed, unless the job is to end."""
        delay = self._restarts.delay_seconds()
        what = f"restart {self._restarts.count}: {why}"
        self._view.complain(f"ddp-bp: {what}; going on from step {step} in {delay:.1f} s")
        until = time.monotonic() + delay
        while time.monotonic() < until and not self._is_asked():
            time.sleep(POLL_SECONDS)
