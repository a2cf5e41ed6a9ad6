"""One start of a job: coordinator and mpirun together, watched until both have ended, and how that went.

Nothing of it outlives the call: no process on this machine, no temporary file. Knows not whether there is a next start.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from ddp_bp.cli.change import Change
from ddp_bp.cli.faults import last_fault
from ddp_bp.cli.job_folder import end_processes, job_folder
from ddp_bp.cli.job_start import JobStart
from ddp_bp.cli.kept_coordinator import END_SECONDS, KeptCoordinator, how_it_ended, linger_line
from ddp_bp.cli.outcome import read_outcome, silent_host, why_it_ended
from ddp_bp.cli.processes import CoordinatorProcess, end_process_group, start_coordinator, start_mpirun
from ddp_bp.cli.rank_processes import RankProcesses
from ddp_bp.cli.resize import Resizing
from ddp_bp.cli.run_hold import BY_USER, RunHold
from ddp_bp.cli.signals import STOP_EXIT_CODES, ends_at_once, stop_exit_code
from ddp_bp.cli.supervise import Attempt, Ending, History, Seen
from ddp_bp.cli.view import TrainingView, shown_command
from ddp_bp.coordinator.client import CoordinatorAddress, ToolClient
from ddp_bp.errors import DdpError, InputError, LaunchError
from ddp_bp.wire.messages import StopCause
from ddp_bp.worker.signals import ANNOUNCEMENTS

POLL_SECONDS = 0.2
COORDINATOR_END_SECONDS = 60.0
LEAVE_SECONDS = 3.0
"""How long the coordinator may take to end where nobody wants to wait any more; one that is stopped never does."""
TRIAL_SECONDS = 3600.0
"""How long a checkpoint may take before the job is stopped for other ranks; it trains meanwhile."""
MPIRUN_END_SECONDS = 10.0
"""How long mpirun may take to end after the coordinator, which does so when the last rank has said goodbye."""
SILENT_HOST_END_SECONDS = 1.0
"""How long mpirun may take to end ranks on the other hosts, if it cannot end those of one."""
_NUM_LAST_LINES = 50


def run_attempt(
    start: JobStart,
    checkpoint: Path | None,
    history: History,
    last: CoordinatorAddress | None,
    asked: list[str],
    hold: RunHold,
    resizing: Resizing,
    view: TrainingView,
) -> tuple[Attempt, CoordinatorAddress]:
    """Start all ranks and a coordinator, and wait for their end.

    Args:
        checkpoint: what they go on from, verified; None: from the beginning.
        history: of the starts before.
        last: where the coordinator of the attempt before was, so that this one is found there as well.
        asked: the signals that arrive meanwhile, and what word is left of with the `hold`.
        resizing: says when it is to stop for another number of ranks.

    Raises:
        DdpError: the coordinator did not start.
    """
    with job_folder() as folder:
        coordinator = _start_coordinator(start, history, last, folder, view)
        try:
            address = coordinator.address
            arguments = ["worker", start.recipe, "--run-dir", str(start.run_dir), *start.set_options()]
            arguments += ["--resume", str(checkpoint) if checkpoint else "never", *start.bind_options()]
            arguments += ["--coordinator", address.address, "--supervised"]
            arguments += ["--world-size", str(start.num_workers + start.num_waiting)]
            arguments += ["--num-spares", str(start.num_waiting)] if start.num_waiting else []
            hostfile = folder / "hostfile"
            if start.placement.spans_hosts:
                hostfile.write_text(start.hostfile(), encoding="utf-8")
            arguments += ["--num-starts", str(history.num_starts), "--num-recoveries", str(history.num_recoveries)]
            command = start.mpirun(arguments, hostfile)
            if last is None:
                view.say(f"coordinator {address.url} (live page, /metrics, /api/status)")
                view.say(shown_command(command))
            mpirun = start_mpirun(command, folder)
            watch = _Watch(
                mpirun, coordinator, address, start.run_dir, start.grace_seconds, asked, hold, resizing, view
            )
            if start.placement.spans_hosts:
                watch.folder, watch.silence_seconds = folder, start.silence_seconds
            else:
                watch.num_ranks_here = start.num_workers + start.num_waiting
            return watch.until_the_end(), address
        finally:
            coordinator.release()


def _start_coordinator(
    start: JobStart, history: History, last: CoordinatorAddress | None, folder: Path, view: TrainingView
) -> KeptCoordinator:
    def begin(overrides: Sequence[str], takes_over: bool) -> CoordinatorProcess:
        return start_coordinator(
            start.recipe,
            (*start.overrides, *overrides),
            start.num_workers,
            start.run_dir,
            start.total_steps,
            history=history,
            most_workers=start.most_workers,
            num_spares=start.num_waiting,
            job_folder=folder,
            takes_over=takes_over,
            shell=start.coordinator_shell,
        )

    def say(text: str) -> None:
        view.complain(f"ddp-bp: {text}")

    if last is None:
        return KeptCoordinator(begin, start.run_dir, say)
    try:
        ports = f"coordinator.port={last.port}", f"coordinator.http_port={last.http_port}"
        return KeptCoordinator(begin, start.run_dir, say, ports)
    except (InputError, LaunchError):
        # Somebody has taken a port meanwhile.
        return KeptCoordinator(begin, start.run_dir, say)


@dataclass
class _Watch:
    """A running job, and what has been heard of it."""

    mpirun: subprocess.Popen[bytes]
    coordinator: KeptCoordinator
    address: CoordinatorAddress
    run_dir: Path
    grace_seconds: float
    asked: list[str]
    hold: RunHold
    resizing: Resizing
    view: TrainingView
    seen: Seen = field(default_factory=Seen)
    was_told_to_change: bool = False
    # Which coordinator was told of a stop and of a wish, by the number of takeovers before it; -1: none.
    told: int = -1
    told_wish: int = -1
    outcome: int | None = None
    left_at_once: bool = False
    leave_at: float = math.inf
    began: float = field(default_factory=time.time)
    folder: Path = Path()
    silence_seconds: float = 0.0
    has_silent_host: bool = False
    num_ranks_here: int = 0
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_NUM_LAST_LINES))

    def __post_init__(self) -> None:
        self.change = Change(self.resizing, self._ask_for_checkpoint, self.view.say, self.view.complain)

    def until_the_end(self) -> Attempt:
        """Show the job until mpirun has ended, and then leave the coordinator the time to show how."""
        forwarding = [self._forward(name) for name in ("out", "err")]
        broken = status = None
        try:
            with self.view.live():
                broken = self._watch()
                status = self._look()
        finally:
            if self.has_silent_host:
                # What mpirun started to reach that host waits for it, and holds our pipes.
                end_process_group(self.mpirun, SILENT_HOST_END_SECONDS)
                end_processes(self.folder)
            end_process_group(self.mpirun)
            for thread in forwarding:
                thread.join(2.0)
        if broken is None and not self.left_at_once:
            self._linger(status)
        self.coordinator.release()
        end_seconds = LEAVE_SECONDS if self.left_at_once else COORDINATOR_END_SECONDS
        return replace(
            self._attempt(self.coordinator.wait(end_seconds), broken),
            resize_to=self.seen.wanted,
            has_trained=self.seen.has_trained,
            num_recoveries=self.seen.num_recoveries,
        )

    def _linger(self, status: dict[str, Any] | None) -> None:
        """Wait until the coordinator need not go on answering, or somebody asks for an end by now."""
        left_seconds = self.leave_at - time.monotonic()
        seconds = 0.0 if status is None else min(status["lingers_seconds"], left_seconds)
        if seconds <= 0:
            return
        num_asked = len(self.asked)
        self.view.say(linger_line(seconds))

        def is_enough() -> bool:
            self.hold.note_stop(self.asked)
            return len(self.asked) > num_asked

        self.coordinator.linger(min(seconds + END_SECONDS, left_seconds), is_enough)

    def _look(self) -> dict[str, Any] | None:
        """Show how the job is doing."""
        status = self.view.refresh(self.address.url)
        self.coordinator.note(status is not None, time.monotonic())
        self.seen.note(status)
        return status

    def _watch(self) -> str | None:
        """Until mpirun ends or is to be ended. Returns what else broke the job, if anything did."""
        gone_at, num_takeovers, have_met = math.inf, self.coordinator.num_takeovers, False
        processes = RankProcesses(self.mpirun.pid, self.num_ranks_here)
        while self.mpirun.poll() is None:
            self.hold.note_stop(self.asked)
            if self.asked and self.told != self.coordinator.num_takeovers:
                # A coordinator that takes another one's place does not know.
                self.told = self.coordinator.num_takeovers
                self.view.say(_stop_line(self.asked[0]))
                self._tell_to_stop(self.asked[0])  # type: ignore[arg-type]
            announced = next((name for name in self.asked if name in ANNOUNCEMENTS), None)
            if announced is not None:
                self.leave_at = min(self.leave_at, time.monotonic() + self.grace_seconds)
            if ends_at_once(self.asked):
                self.view.say("ending at once")
                self.left_at_once = True
                return None
            if time.monotonic() > self.leave_at:
                text = f"no checkpoint within fault.grace_seconds = {self.grace_seconds:g}; leaving at once"
                self.view.complain(f"ddp-bp: {announced}: {text}")
                self.left_at_once = True
                return None
            code = self.coordinator.check()
            if (code or 0) < 0:
                return f"the coordinator {how_it_ended(code or 0)}"
            if code is not None:
                gone_at = min(gone_at, time.monotonic())
                if time.monotonic() - gone_at > MPIRUN_END_SECONDS:
                    return last_fault(self.run_dir, self.began)
            status = self._look()
            processes.look(time.monotonic())
            have_met = have_met or bool(status and status["ranks"])
            if status is not None and not have_met and processes.one_is_missing:
                return "a rank has died before all had found each other"
            if processes.all_have_ended:
                why = last_fault(self.run_dir, self.began) or why_it_ended(self.lines, None)
                return why if self.outcome is None else None
            if silent := silent_host(status, self.silence_seconds):
                self.has_silent_host = True
                return silent
            if status is not None and not self.asked:
                self.change.follow(status, time.monotonic())
            if num_takeovers != self.coordinator.num_takeovers:
                num_takeovers = self.coordinator.num_takeovers
                self.change.forget_trial()
            cause = self.change.told(self._look, time.monotonic())
            if cause is not None and self.told_wish != self.coordinator.num_takeovers:
                self.told_wish, self.was_told_to_change = self.coordinator.num_takeovers, True
                self._tell_to_stop(cause)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.mpirun.wait(POLL_SECONDS)
        return None

    def _attempt(self, coordinator_code: int, broken: str | None) -> Attempt:
        code = self.mpirun.returncode
        # A stop that somebody asked for meanwhile prevails.
        wish = self.change.wish
        goes_on = wish is not None and wish.cause != "too_few" and (self.outcome or 0) == 0
        # One that was killed in the very end has acknowledged the summary, or no rank would say that all went well.
        was_killed = coordinator_code < 0 or self.coordinator.num_takeovers > 0
        if coordinator_code == 0 or (was_killed and self.outcome in (0, *STOP_EXIT_CODES.values())):
            if code != 0 and not self.left_at_once:
                self.view.say(f"mpirun ended with exit code {code}, after every rank had finished")
            return Attempt(Ending.WELL, exit_code=self.outcome, goes_on=goes_on)
        if self.left_at_once:
            return Attempt(Ending.ASKED, exit_code=stop_exit_code(self.asked))
        if self.outcome is not None:
            if self.was_told_to_change and wish is not None and wish.cause != "too_few":
                # It failed because it was to stop, such as when the disk is full by now, and not for what it computes:
                # there was a checkpoint a moment ago. If it did, the next start ends with the same error.
                return Attempt(Ending.DEATH, why=f"the ranks failed when they were to stop ({wish.why})")
            return Attempt(Ending.ERROR, exit_code=self.outcome)
        if code in STOP_EXIT_CODES.values() and broken is None:
            # A rank that was told to leave, and could not save a checkpoint in time.
            return Attempt(Ending.ASKED, exit_code=code)
        why = broken or last_fault(self.run_dir, self.began) or why_it_ended(self.lines, code)
        return Attempt(Ending.DEATH, why=why)

    def _ask_for_checkpoint(self) -> Future[str]:
        """Have a checkpoint taken; what is against it, if anything."""
        told: Future[str] = Future()

        def ask() -> None:
            try:
                with ToolClient(self.address.address, self.address.run_id) as client:
                    done = client.request_checkpoint(TRIAL_SECONDS)
                told.set_result("" if done.ok else done.message)
            except DdpError as error:
                told.set_result(str(error))

        threading.Thread(target=ask, name="ask for a checkpoint", daemon=True).start()
        return told

    def _tell_to_stop(self, cause: StopCause) -> None:
        """Have the ranks told. Not waited for: a coordinator that has just ended, or was killed, does not answer."""
        num_takeovers = self.coordinator.num_takeovers

        def tell() -> None:
            try:
                with ToolClient(self.address.address, self.address.run_id) as client:
                    client.stop(cause)
            except DdpError as error:
                # Otherwise the job has ended, or the next coordinator is told.
                if self.coordinator.check() is None and num_takeovers == self.coordinator.num_takeovers:
                    self.view.complain(f"ddp-bp: the workers could not be told: {error}")
                    # Tried again.
                    self.told = self.told_wish = -1

        threading.Thread(target=tell, name="tell ranks to stop", daemon=True).start()

    def _forward(self, name: str) -> threading.Thread:
        """Pass on what the workers print, line by line, but for what is meant for us."""
        stream: IO[bytes] | None = self.mpirun.stdout if name == "out" else self.mpirun.stderr
        assert stream is not None

        def run() -> None:
            for line in stream:
                text, outcome = read_outcome(line.decode(errors="replace").rstrip("\n"))
                if outcome is not None:
                    self.outcome = max(outcome, self.outcome or 0)
                    if not text:
                        continue
                # Open MPI says on stderr who died, and Hydra on stdout.
                self.lines.append(text)
                if name == "err":
                    self.view.complain(text)
                else:
                    self.view.say(text)

        thread = threading.Thread(target=run, name=f"forward std{name}", daemon=True)
        thread.start()
        return thread


def _stop_line(asked: str) -> str:
    if asked == BY_USER:
        return "`ddp-bp stop`: saving a checkpoint, then ending"
    how = "once more" if asked != "SIGUSR1" else "SIGINT or SIGTERM twice"
    return f"{asked}: saving a checkpoint, then ending; {how} ends at once"
