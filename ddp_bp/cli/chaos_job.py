"""One job of `ddp-bp chaos`: `ddp-bp train` as a child, watched through its coordinator, and disturbed meanwhile.

What is done, and when, is given; whether the job survived is judged elsewhere from what is noted here.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ddp_bp.chaos.announced import rounds_that_were
from ddp_bp.chaos.disturb import Disturber
from ddp_bp.chaos.fill import Filler
from ddp_bp.chaos.record import Done, JobOrder, JobRecord
from ddp_bp.chaos.schedule import Disturbance
from ddp_bp.chaos.traces import Traces, describe_process
from ddp_bp.chaos.usage import UsageWatch, usage_of
from ddp_bp.cli.environment import chaos_environment, has_mark, job_folder_of
from ddp_bp.cli.output import seconds_text
from ddp_bp.cli.processes import end_process_group, start_logged
from ddp_bp.cli.view import fetch_status
from ddp_bp.coordinator.client import ToolClient, read_address
from ddp_bp.coordinator.memory import read_memory
from ddp_bp.errors import AddressError, DdpError
from ddp_bp.worker.death import encode_deaths

POLL_SECONDS = 0.05
USAGE_SECONDS = 1.0
END_SECONDS = 10.0
"""How long what a killed launcher leaves may take to end: twice what is promised."""
FULL_SECONDS = 30.0
"""How long a file system stays full if no checkpoint fails."""
AFTERMATH_SECONDS = 10.0
"""After a file system has been freed, how long a job may take to end because its last checkpoint found no room."""
STACKS_FILE = "chaos-stacks.json"


def run_job(order: JobOrder, asked: Sequence[str], say: Callable[[str], None]) -> JobRecord:
    """Run a job to its end, or until a signal is in `asked`; nothing of it runs any more then.

    `say` is told of each disturbance.
    """
    job = _Job(order, asked, say)
    try:
        job.until_the_end()
    finally:
        job.clear_away()
    return job.record


class _Job:
    def __init__(self, order: JobOrder, asked: Sequence[str], say: Callable[[str], None]) -> None:
        self._order, self._asked, self._say = order, asked, say
        self._traces = Traces(lambda variables: has_mark(variables, order.mark), job_folder_of)
        self._disturber = Disturber(self._traces)
        self._filler = Filler(order.run_dir.parent / f"filling-{order.name}")
        self._full_until: float | None = None
        self._freed_at = float("-inf")
        self._num_failures = 0
        self._schedule = list(order.schedule)
        self._quiet_seconds = 0.0
        self._began: float | None = None
        self._last_seen: float | None = None
        self._moved_at = self._looked_at = time.monotonic()
        self._moved: object = None
        self._used_at = 0.0
        self._restarts: dict[int, int] = {}
        self._usage = UsageWatch(lambda pid: usage_of(pid) if self._traces.owns(pid) else None)
        self._train: subprocess.Popen[bytes] | None = None
        self.record = JobRecord()

    @property
    def _log(self) -> Path:
        return self._order.run_dir.parent / f"{self._order.name}.log"

    def until_the_end(self) -> None:
        self._start(encode_deaths([death for one in self._order.rounds for death in one.deaths]))
        while not self._asked:
            assert self._train is not None
            code = self._train.poll()
            status = self._status() if code is None else None
            now = time.monotonic()
            self._note(status, now)
            if self._full_until is not None:
                self._free_in_time(status, code, now)
            elif code is not None:
                if code == 0 or now - self._freed_at > AFTERMATH_SECONDS:
                    break
                self._start_after_want_of_room(code)
            if self._train.poll() is not None:
                continue
            self._disturber.wake(now)
            if status is not None:
                self._disturb_if_due(status, now)
            self._looked_at = now
            if now - self._moved_at > self._order.patience_seconds:
                self._give_up()
                return
            time.sleep(POLL_SECONDS)
        if self._train is not None:
            self.record.exit_code = self._train.poll()

    def clear_away(self) -> None:
        """End what is left, note what should not have been, and count."""
        record = self.record
        self._filler.free()
        if self._train is not None and self._train.poll() is None:
            self._disturber.wake(float("inf"))
            end_process_group(self._train)
        else:
            if left := self._disturber.wait_until_gone(END_SECONDS):
                record.problems.append(f"still there {END_SECONDS:g} s after the end: {_described(left)}")
            record.problems += [f"left behind: {path}" for path in self._traces.left_behind()]
        self._disturber.end_all()
        self._traces.remove()
        if self._began is not None and self._last_seen is not None:
            record.seconds = self._last_seen - self._began
        record.num_restarts = sum(self._restarts.values())
        memory = read_memory(self._order.run_dir)
        record.num_in_place = max(record.num_in_place, memory.num_recoveries if memory else 0)
        record.usage, record.growth = self._usage.ranks(), self._usage.growth
        for one in record.usage:
            record.problems += one.problems()
        self._note_deaths()

    # ---- starting and watching

    def _start(self, deaths: str = "") -> None:
        with self._log.open("ab") as log:
            self._train = start_logged(self._order.command, chaos_environment(self._order.mark, deaths), log.fileno())
        self.record.num_starts += 1
        self._moved_at = time.monotonic()

    def _status(self) -> dict[str, Any] | None:
        try:
            return fetch_status(read_address(self._order.run_dir).url)
        except AddressError:
            return None

    def _note(self, status: dict[str, Any] | None, now: float) -> None:
        """What there is to know of how the job gets on."""
        if status is None:
            return
        trains = status["state"] in ("training", "finished")
        if trains and self._began is None:
            self._began = now
        moved = status["state"], status["step"], status["restarts"], status["recoveries"], self.record.num_starts
        if moved != self._moved:
            self._moved, self._moved_at = moved, now
            self._last_seen = now if trains else self._last_seen
        start = self.record.num_starts
        self._restarts[start] = max(self._restarts.get(start, 0), status["restarts"])
        self.record.num_in_place = max(self.record.num_in_place, status["recoveries"])
        if status["state"] == "training" and now - self._used_at > USAGE_SECONDS:
            self._used_at = now
            self._traces.look()
            if status["step"] > 0:
                self._usage.look(_working(status), now)

    def _give_up(self) -> None:
        """The job hangs: keep where everybody is."""
        path = self._order.run_dir / STACKS_FILE
        why = f"no progress for {self._order.patience_seconds:g} s"
        try:
            address = read_address(self._order.run_dir)
            with ToolClient(address.address, address.run_id) as client:
                path.write_text(json.dumps(client.stacks(), indent=2) + "\n", encoding="utf-8")
            why += f"; where every rank was is in {path}"
        except (DdpError, OSError) as error:
            why += f"; where the ranks were is not known: {error}"
        self.record.problems.append(why)
        self._say(f"gives up: {why}")

    # ---- disturbing

    def _disturb_if_due(self, status: dict[str, Any], now: float) -> None:
        """The next disturbance, once the job has trained for long enough since the last one."""
        here = {rank: pid for rank, pid in _working(status).items() if self._traces.owns(pid)}
        waits_for_eviction = self._disturber.some_are_stopped_for_good
        if not self._schedule or status["state"] != "training" or not here or waits_for_eviction:
            return
        if self._full_until is not None:
            return
        self._quiet_seconds += now - self._looked_at
        if self._quiet_seconds < self._schedule[0].wait_seconds:
            return
        disturbance = self._schedule.pop(0)
        self._quiet_seconds = 0.0
        if status["ready"]:
            self._usage.before_disturbance(here, now)
        awake = {rank: pid for rank, pid in here.items() if not self._disturber.is_stopped(pid)}
        victims = disturbance.victims(awake)
        doing = {row["rank"]: row["doing"] or row["phase"] for row in status["ranks"]}
        what = self._do(disturbance, [awake[rank] for rank in victims], status, now, is_last=len(awake) == 1)
        if what is None:
            return
        who = ", ".join(f"rank {rank} (process {awake[rank]}, {doing[rank]})" for rank in victims)
        self._tell(
            Done(
                round(now - (self._began or now), 3),
                disturbance.kind,
                " ".join(filter(None, (who, what))),
                victims,
                status["step"],
                [doing[rank] for rank in victims],
            )
        )

    def _do(
        self, disturbance: Disturbance, pids: list[int], status: dict[str, Any], now: float, *, is_last: bool
    ) -> str | None:
        """What was done, in words; None if there was nobody to do it to."""
        match disturbance.kind:
            case "stop":
                # One rank alone that hangs keeps nobody waiting, and so is not evicted.
                pause = 1.0 if disturbance.pause_seconds is None and is_last else disturbance.pause_seconds
                if not pids or not self._disturber.stop(pids[0], None if pause is None else now + pause):
                    return None
                return "for good, to be evicted" if pause is None else f"for {seconds_text(pause)}"
            case "coordinator":
                return self._kill_coordinator()
            case "launcher":
                return self._kill_launcher()
            case "fill":
                self._num_failures, self._full_until = status["checkpoints"]["failures"], now + FULL_SECONDS
                return f"{self._filler.fill() / 1e6:.0f} MB taken, until a checkpoint fails"
            case _:
                return "" if pids and self._disturber.kill(pids) else None

    def _kill_coordinator(self) -> str | None:
        with contextlib.suppress(AddressError):
            pid = read_address(self._order.run_dir).pid
            if self._disturber.kill([pid]):
                return f"process {pid}"
        return None

    def _kill_launcher(self) -> str:
        """SIGKILL, and the same command once more when all is gone."""
        assert self._train is not None
        train = self._train
        self._traces.look()
        train.kill()
        train.wait()
        began = time.monotonic()
        if left := self._disturber.wait_until_gone(END_SECONDS):
            text = f"still there {END_SECONDS:g} s after the launcher was killed: {_described(left)}"
            self.record.problems.append(text)
            self._disturber.end_all()
        took = time.monotonic() - began
        self._start()
        return f"process {train.pid}; all had ended {seconds_text(took)} later, and it was started again"

    def _free_in_time(self, status: dict[str, Any] | None, code: int | None, now: float) -> None:
        """Free the file system when a checkpoint has failed, or the job has ended; then it is started again."""
        has_failed = status is not None and status["checkpoints"]["failures"] > self._num_failures
        if not has_failed and code is None and now < (self._full_until or 0.0):
            return
        self._full_until, self._freed_at = None, now
        self._filler.free()
        why = "a checkpoint failed" if has_failed else f"no checkpoint failed within {FULL_SECONDS:g} s"
        self._say(f"file system freed: {'the job ended' if code else why}")
        if code is not None and code != 0:
            self._start_after_want_of_room(code)

    def _start_after_want_of_room(self, code: int) -> None:
        """A job that cannot save its last checkpoint says so and ends; whoever makes room starts it again."""
        self._freed_at = float("-inf")
        self._say(f"the job ended with exit code {code}, and is started again")
        self._start()

    def _tell(self, done: Done) -> None:
        self.record.done.append(done)
        when = "" if done.seconds is None else f"{done.seconds:.2f} s, "
        self._say(f"{when}step {done.step}: {done.kind} {done.what}")

    def _note_deaths(self) -> None:
        """Rounds in which ranks have killed themselves, and ranks that were to and have not."""
        if not self._order.rounds:
            return
        with self._log.open(errors="replace") as lines:
            done, missing = rounds_that_were(self._order.rounds, lines)
        for one in done:
            self._tell(one)
        if missing:
            self._say(f"rank {', '.join(map(str, missing))} did not come to the point at which it was to die")


def _working(status: dict[str, Any]) -> dict[int, int]:
    """The processes of the ranks that are left and are no spares, by their number at the start."""
    others = {*status["lost_ranks"], *status["spare_ranks"]}
    return {row["rank"]: row["pid"] for row in status["ranks"] if row["connected"] and row["rank"] not in others}


def _described(pids: Sequence[int]) -> str:
    return ", ".join(map(describe_process, pids))
