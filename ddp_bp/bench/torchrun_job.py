"""PyTorch DDP under `torchrun`, one of whose workers is killed: how long until it trains again.

`torchrun` notices the death, ends the other workers and starts all of them anew, and they go on from their checkpoint.
Workers note the time of each step, so that what is measured is exact to far less than a millisecond.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from ddp_bp.bench.recovery import PeerKills, RankKill, peer_summed_up
from ddp_bp.bench.step_notes import StepNote, StepReader
from ddp_bp.bench.torchrun_worker import STEPS_FILE
from ddp_bp.bench.watched_process import Begin, WatchedProcess

_MAX_RESTARTS = 3
_NUM_WARM_UP_STEPS = 20
_STEADY_SECONDS = 1.0
_MOST_JITTER_SECONDS = 0.3
_START_SECONDS = 120.0
_POLL_SECONDS = 0.02


def measure_torchrun(
    begin: Begin,
    check: Callable[[], None],
    folder: Path,
    model: str,
    num_workers: int,
    every_steps: int,
    times: int,
    generator: random.Random,
) -> PeerKills | None:
    """Kill a worker so many times; None without PyTorch.

    Args:
        begin: starts a command. check: raises when nobody wants to wait any longer.
        folder: for files of these jobs alone.
        model: a name of `bench.models`. every_steps: how often a checkpoint is written.
        generator: draws who is killed and when.

    Raises:
        DistributedError: `torchrun` has ended, or has not come so far in time; the message has what it said last.
    """
    if find_spec("torch") is None:
        return None
    kills: list[RankKill] = []
    while len(kills) < times:
        here = folder / f"torchrun-{len(kills)}"
        here.mkdir()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(num_workers), "--max-restarts", str(_MAX_RESTARTS)]
        command += ["-m", "ddp_bp", "torchrun-worker", str(here), model, str(every_steps)]
        log = here / "log"
        process = WatchedProcess("torchrun", begin(command, log), log, check)
        try:
            torchrun = _Torchrun(process, StepReader(here / STEPS_FILE), num_workers)
            for _ in range(min(_MAX_RESTARTS, times - len(kills))):
                kills.append(torchrun.kill_one(generator))
        finally:
            process.end()
    return peer_summed_up(metadata.version("torch"), kills)


class _Torchrun:
    """One start of `torchrun`, in which a worker may be killed several times."""

    def __init__(self, process: WatchedProcess, reader: StepReader, num_workers: int) -> None:
        self._process, self._reader, self._num_workers = process, reader, num_workers
        self._ended: set[int] = set()
        self._place = 0

    def kill_one(self, generator: random.Random) -> RankKill:
        """Kill a worker at a moment drawn at random, once those that were started last have taken some steps."""
        what = f"{_NUM_WARM_UP_STEPS} steps of {self._num_workers} workers"
        first = self._process.wait_for(self._warm, what, _START_SECONDS, _POLL_SECONDS)
        until = time.monotonic() + _STEADY_SECONDS + generator.uniform(0, _MOST_JITTER_SECONDS)

        def steady() -> StepNote | None:
            return self._last_after(first) if time.monotonic() >= until else None

        last = self._process.wait_for(steady, "an ordinary step", _START_SECONDS, _POLL_SECONDS)
        pids = {note.rank: note.pid for note in self._present()}
        victim = generator.randrange(self._num_workers)
        killed_at = time.monotonic()
        os.kill(pids[victim], signal.SIGKILL)

        def committed_after() -> tuple[float, float] | None:
            before = max(note.step for note in self._present(pids.values()))
            new = [note for note in self._present() if note.pid not in pids.values()]
            ahead = [note.at_seconds for note in new if note.step > before]
            return (min(note.at_seconds for note in new), min(ahead)) if ahead else None

        what = "a step after a worker had been killed"
        going_on, caught_up = self._process.wait_for(committed_after, what, _START_SECONDS, _POLL_SECONDS)
        self._ended |= set(pids.values())
        self._place = next(place for place, note in enumerate(self._reader.notes) if note.pid not in self._ended)
        return RankKill(
            ranks=[victim],
            in_place=False,
            seconds=going_on - killed_at,
            caught_up_seconds=caught_up - killed_at,
            step_seconds=(last.at_seconds - first.at_seconds) / (last.step - first.step),
        )

    def _present(self, pids: Collection[int] | None = None) -> list[StepNote]:
        """What processes have noted that belong to no earlier start; only these processes, if they are given."""
        self._reader.read()
        notes = self._reader.notes[self._place :]
        if pids is None:
            return [note for note in notes if note.pid not in self._ended]
        return [note for note in notes if note.pid in pids]

    def _warm(self) -> StepNote | None:
        """The last step of rank 0, once all workers have taken enough of them."""
        counts = Counter(note.rank for note in self._present())
        if len(counts) < self._num_workers or min(counts.values()) < _NUM_WARM_UP_STEPS:
            return None
        return next(note for note in reversed(self._present()) if note.rank == 0)

    def _last_after(self, first: StepNote) -> StepNote | None:
        last = next(note for note in reversed(self._present()) if note.rank == 0)
        return last if last.step > first.step else None
