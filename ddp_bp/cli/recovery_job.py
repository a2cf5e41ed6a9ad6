"""A `ddp-bp train` that is started to lose a process, and how long it takes to go on, as its own memory says.

Steps are seen where ranks note them (`bench.journal_watch`), every few milliseconds, so that a time is at most about
5 ms too long; where all ranks start again, 15 ms, since their processes must be found first. Training is not disturbed.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddp_bp.bench.journal_watch import JournalWatch
from ddp_bp.bench.recovery import CoordinatorKill, RankKill, recomputed_seconds, victims
from ddp_bp.bench.watched_process import Begin, WatchedProcess
from ddp_bp.cli.view import fetch_status
from ddp_bp.coordinator.address import CoordinatorAddress, read_address
from ddp_bp.errors import AddressError

_NUM_WARM_UP_STEPS = 20
_NUM_STEADY_STEPS = 5
_STEADY_SECONDS = 1.0
_MOST_JITTER_SECONDS = 0.3
_START_SECONDS = 60.0
_GOING_ON_SECONDS = 120.0
_LOOK_SECONDS = 0.003
_STATUS_POLL_SECONDS = 0.01
_COMPUTE_PHASES = ("data_wait", "forward", "backward")
_RECOVERED = re.compile(r"ranks? go on from step \d+(?:; (\d+) shards? computed in its place)?")
_RESTARTED = re.compile(r"going on from step (\d+) (?:in|with) ")


@dataclass(frozen=True)
class JobMaker:
    """Starts the same job again and again, each time in a new run directory in `folder`.

    options: of `ddp-bp train`, beside its recipe and run directory. check: raises when nobody wants to wait any longer.
    """

    recipe: str
    options: Sequence[str]
    num_workers: int
    num_spares: int
    folder: Path
    begin: Begin
    check: Callable[[], None]

    @contextmanager
    def start(self, name: str) -> Iterator[TrainingJob]:
        """A job that has just been started, for as long as the block lasts. No other may have had this name."""
        run_dir, log = self.folder / f"run-{name}", self.folder / f"train-{name}.log"
        command = [sys.executable, "-m", "ddp_bp", "train", self.recipe, "-n", str(self.num_workers)]
        command += ["--run-dir", str(run_dir), *self.options]
        process = WatchedProcess("ddp-bp train", self.begin(command, log), log, self.check)
        try:
            yield TrainingJob(process, run_dir, self.num_workers, self.num_spares)
        finally:
            process.end()
            # Many jobs leave many checkpoints.
            shutil.rmtree(run_dir, ignore_errors=True)


class TrainingJob:
    """One job. A rank is killed in it at most once, since those that are left are then fewer."""

    def __init__(self, process: WatchedProcess, run_dir: Path, num_workers: int, num_spares: int) -> None:
        self._process, self._run_dir = process, run_dir
        self._num_workers, self._num_spares = num_workers, num_spares

    def kill_ranks(self, kind: str, generator: random.Random) -> tuple[RankKill, float]:
        """What comes of a kill of that kind, at a moment drawn at random; and how long a shard takes.

        Raises:
            DistributedError: the job has ended, or does not go on; the message has what it said last.
        """
        ranks = victims(kind, self._num_workers, generator)
        status = self._wait_for_ranks()
        pids = [rank["pid"] for rank in status["ranks"]]
        survivor = next(pid for rank, pid in enumerate(pids[: self._num_workers]) if rank not in ranks)
        with closing(JournalWatch(survivor)) as watch:
            step_seconds = self._steady(watch, generator)
            shard_seconds = _shard_seconds(self._status() or status)
            watch.search()
            watch.look()
            old = watch.journals
            killed_at = time.monotonic()
            for rank in ranks:
                os.kill(pids[rank], signal.SIGKILL)

            def went_on() -> float | None:
                watch.search()
                watch.look()
                now = time.monotonic()
                new = watch.journals - old
                # If the rank has ended as well, that is an answer, too.
                has_committed = bool(new) and watch.num_committed(new) > watch.num_committed(old)
                return now if has_committed or watch.is_gone else None

            at = self._process.wait_for(went_on, "a step after ranks had been killed", _GOING_ON_SECONDS, _LOOK_SECONDS)
            if watch.is_gone:
                kill = self._started_again(ranks, pids, watch.num_committed(), killed_at, step_seconds)
                return kill, shard_seconds
        seconds = at - killed_at
        num_shards = self._num_recomputed()
        recomputing = recomputed_seconds(num_shards, self._num_workers - len(ranks), shard_seconds)
        # With enough spares the first step is one of as many ranks as before.
        whole = seconds if self._num_spares >= len(ranks) else self._replaced(pids, killed_at)
        return RankKill(ranks, True, seconds, seconds, step_seconds, num_shards, recomputing, whole), shard_seconds

    def kill_coordinator(self, generator: random.Random) -> CoordinatorKill:
        """What comes of a kill of the coordinator, at a moment drawn at random.

        Raises:
            DistributedError: the job has ended, or the coordinator does not come back; the message has what it said.
        """
        status = self._wait_for_ranks()
        with closing(JournalWatch(status["ranks"][0]["pid"])) as watch:
            step_seconds = self._steady(watch, generator)
            address = read_address(self._run_dir)
            watch.look()
            before, killed_at = watch.num_committed(), time.monotonic()
            os.kill(address.pid, signal.SIGKILL)

            def is_back() -> float | None:
                another = self._address()
                if another is None or another.pid == address.pid:
                    return None
                answer = fetch_status(address.url)
                return time.monotonic() if answer is not None and answer["ready"] else None

            back_at = self._process.wait_for(
                is_back, f"the coordinator at {address.url} again", _GOING_ON_SECONDS, _STATUS_POLL_SECONDS
            )
            watch.look()
        seconds = back_at - killed_at
        return CoordinatorKill(seconds, step_seconds, seconds / max(1, watch.num_committed() - before))

    def _started_again(
        self, ranks: list[int], old_pids: Sequence[int], num_committed: int, killed_at: float, step_seconds: float
    ) -> RankKill:
        """What comes of it where all ranks start again."""
        pid = self._new_rank(old_pids)
        with closing(JournalWatch(pid)) as watch:
            at = self._first_after(self._begins_at(), watch)
            caught_up_at = self._first_after(num_committed, watch)
        seconds = at - killed_at
        return RankKill(ranks, False, seconds, caught_up_at - killed_at, step_seconds, whole_seconds=seconds)

    def _replaced(self, old_pids: Sequence[int], killed_at: float) -> float:
        """How long after the kill ranks that were started in the place of dead ones had committed a step."""
        with closing(JournalWatch(self._new_rank(old_pids))) as watch:
            return self._first_after(self._begins_at(), watch) - killed_at

    def _new_rank(self, old_pids: Sequence[int]) -> int:
        """A process that was started since; its number."""

        def new_rank() -> int | None:
            status = self._status()
            pids = [rank["pid"] for rank in status["ranks"]] if status is not None else []
            return next((pid for pid in pids if pid not in old_pids), None)

        return self._process.wait_for(new_rank, "ranks to start again", _GOING_ON_SECONDS, _STATUS_POLL_SECONDS)

    def _begins_at(self) -> int:
        """The step that the newest start goes on from."""
        return [int(step) for step in _RESTARTED.findall(self._process.output())][-1]

    def _first_after(self, step: int, watch: JournalWatch) -> float:
        """When that process was first seen to have committed more than `step` steps."""

        def committed() -> float | None:
            watch.search()
            watch.look()
            return time.monotonic() if watch.num_committed() > step else None

        what = f"step {step + 1} after a restart"
        return self._process.wait_for(committed, what, _GOING_ON_SECONDS, _LOOK_SECONDS)

    def _wait_for_ranks(self) -> dict[str, Any]:
        """The status, once all ranks are there."""

        def there() -> dict[str, Any] | None:
            status = self._status()
            num_ranks = self._num_workers + self._num_spares
            return status if status is not None and len(status["ranks"]) == num_ranks else None

        return self._process.wait_for(there, f"{self._num_workers} ranks", _START_SECONDS, 0.05)

    def _steady(self, watch: JournalWatch, generator: random.Random) -> float:
        """How long a step takes, after the first ones, until a moment drawn at random."""

        def reached(steps: int, at: float) -> tuple[int, float] | None:
            if not watch.journals:
                watch.search()
            watch.look()
            now, num_steps = time.monotonic(), watch.num_committed()
            return (num_steps, now) if num_steps >= steps and now >= at else None

        def wait(steps: int, at: float) -> tuple[int, float]:
            what = f"{steps} steps of {self._num_workers} ranks"
            return self._process.wait_for(lambda: reached(steps, at), what, _START_SECONDS, _LOOK_SECONDS)

        first, began = wait(_NUM_WARM_UP_STEPS, 0.0)
        seconds = _STEADY_SECONDS + generator.uniform(0, _MOST_JITTER_SECONDS)
        last, ended = wait(first + _NUM_STEADY_STEPS, began + seconds)
        return (ended - began) / (last - first)

    def _num_recomputed(self) -> int:
        """How many shards were computed in place of dead ranks, as rank 0 has said."""

        def said() -> list[str] | None:
            return _RECOVERED.findall(self._process.output()) or None

        found = self._process.wait_for(said, "rank 0 to say that it goes on", _GOING_ON_SECONDS, _STATUS_POLL_SECONDS)
        return sum(int(number or 0) for number in found)

    def _address(self) -> CoordinatorAddress | None:
        try:
            return read_address(self._run_dir)
        except AddressError:
            return None

    def _status(self) -> dict[str, Any] | None:
        address = self._address()
        return None if address is None else fetch_status(address.url)


def _shard_seconds(status: dict[str, Any]) -> float:
    """How long loading, forward and backward of one shard take, by the means of the rank that takes longest."""
    most = -(-status["shards"] // status["world_size"])
    ranks = [[rank.get(f"{phase}_seconds_mean") or 0.0 for phase in _COMPUTE_PHASES] for rank in status["ranks"]]
    return float(max(map(sum, ranks)) / most)
