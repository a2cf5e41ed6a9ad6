"""What the training thread is doing, read from its stack by another thread: a step pays nothing for being watched.

What has the name of a phase is a function that the training thread is inside of, the innermost such one. Knows not
what is made of it.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from time import monotonic
from types import CodeType, FrameType, MappingProxyType

from ddp_bp.data.batches import Batches
from ddp_bp.engine.value import Value
from ddp_bp.optim import Optimizer
from ddp_bp.parallel.bucket_exchange import BucketExchange
from ddp_bp.parallel.mpi import MpiCommunicator
from ddp_bp.wire.messages import Position, ThreadStack
from ddp_bp.wire.phases import WAITING
from ddp_bp.worker.checkpointing import Checkpointing
from ddp_bp.worker.evaluation import Evaluation
from ddp_bp.worker.loop import TrainingLoop
from ddp_bp.worker.objective import Objective
from ddp_bp.worker.sampling import write_sample
from ddp_bp.worker.shards import ShardComputation
from ddp_bp.worker.update import Update

_MAX_FRAMES = 64

_PHASES: Mapping[CodeType, str] = MappingProxyType(
    {
        TrainingLoop.run.__code__: "between steps",
        ShardComputation.compute.__code__: "compute",
        ShardComputation.recompute.__code__: "compute",
        Batches.load.__code__: "data",
        Objective.train.__code__: "forward",
        Value.backward.__code__: "backward",
        Update.take_step.__code__: "exchange",
        Evaluation.run.__code__: "evaluation",
        Checkpointing.begin.__code__: "checkpoint",
        Checkpointing.wait.__code__: "checkpoint",
        write_sample.__code__: "sampling",
        # For the other thread, which waits for other ranks.
        BucketExchange.has_arrived.__code__: WAITING,
        BucketExchange.finish.__code__: WAITING,
    }
)
_OPTIMIZERS = Optimizer.__module__.rpartition(".")[0] + "."
_WAITS_IN = MpiCommunicator.__module__


class Activity:
    """Watches the thread that makes it. The methods belong to one other thread."""

    def __init__(self, step: Callable[[], int], sign: Callable[[], object]) -> None:
        """`step`: how many are committed. `sign`: anything that is another while there is progress within a phase."""
        self._thread, self._step, self._sign = threading.get_ident(), step, sign
        self._seen: tuple[int, str, object] = (-1, "", None)
        self._since = monotonic()

    def position(self) -> Position:
        """What the thread is doing, and since when nothing of that has changed."""
        seen = self._step(), phase_of(sys._current_frames().get(self._thread)), self._sign()
        now = monotonic()
        if seen != self._seen:
            self._seen, self._since = seen, now
        return Position(seen[0], seen[1], now - self._since)


def phase_of(frame: FrameType | None) -> str:
    """The phase that a thread is in whose innermost frame this is."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module == _WAITS_IN:
            return WAITING
        if module.startswith(_OPTIMIZERS):
            return "optimizer"
        if (phase := _PHASES.get(frame.f_code)) is not None:
            return phase
        frame = frame.f_back
    return "other"


def place_outside_mpi() -> tuple[CodeType, int] | None:
    """Where the main thread is, without the calls of MPI that it is in: another place whenever it has gone on to
    another one of them."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_globals.get("__name__", "") == _WAITS_IN:
        frame = frame.f_back
    return None if frame is None else (frame.f_code, frame.f_lasti)


def thread_stacks() -> list[ThreadStack]:
    """Where every Python thread of this process is, the main thread first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    frames = sorted(sys._current_frames().items(), key=lambda entry: (entry[0] != main, entry[0]))
    return [ThreadStack(names.get(ident, f"thread {ident}"), _frames(frame)) for ident, frame in frames]


def _frames(frame: FrameType) -> list[str]:
    # Without the source lines: this thread may have to answer while the file system hangs.
    summary = traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False, limit=_MAX_FRAMES)
    return [f"{entry.name} ({entry.filename}:{entry.lineno})" for entry in reversed(summary)]
