"""Shards that advance side by side, for models that sum over all shards on the way (SyncBatchNorm).

Each owned shard runs in a thread of its own, but only one at a time, and always to the same places: to where it asks
for a sum over all shards, or to its end. Then all ranks exchange what their shards ask for, and every shard goes on
with the sum along the reduction tree. So neither the number of ranks nor the timing of threads reaches a bit.

What shards share (where gradients go, and the buffers) changes hands with the turn. The threads are there only because
a computation that is in the middle of a backward pass cannot be left otherwise; nothing runs concurrently.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from ddp_bp.engine.buffers import Buffers
from ddp_bp.engine.flat import FlatParameters
from ddp_bp.engine.shard_group import shard_group
from ddp_bp.errors import DistributedError
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.membership import shard_run
from ddp_bp.parallel.tree import tree_sum
from ddp_bp.worker.phases import Phase, PhaseClock

Array = npt.NDArray[Any]


class _State(IntEnum):
    """What a rank says of its shards before each exchange."""

    NO_SHARDS = 0
    FINISHED = 1
    ASKS = 2
    FAILED = 3


class _Abandoned(BaseException):
    """Unwinds a shard whose step has failed elsewhere."""


class Turn:
    """One shard's computation. It is the `ShardGroup` that the shard asks for sums."""

    def __init__(self, function: Callable[[Turn], object]) -> None:
        self.phase = Phase.FORWARD
        """What its time is to be counted as; the function sets it."""
        self.request: Array | None = None
        self.error: BaseException | None = None
        self.suspended: Any = None
        self._answer: Array | None = None
        self._is_abandoned = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        context = copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._body, function), daemon=True)
        self._thread.start()

    @property
    def is_finished(self) -> bool:
        return not self._thread.is_alive()

    def total(self, values: Array) -> Array:
        self.request = values
        self._back.release()
        self._go.acquire()
        if self._is_abandoned or self._answer is None:
            raise _Abandoned
        return self._answer

    def take(self) -> None:
        """Let it run until it asks for a sum or ends."""
        self._go.release()
        self._back.acquire()
        if self.request is None:
            self._thread.join()

    def answer(self, total: Array) -> None:
        """Give it the sum that it goes on with at its next turn. It may keep it, so it gets a copy."""
        self.request, self._answer = None, total.copy()

    def abandon(self) -> None:
        """End it where it stands."""
        if not self.is_finished:
            self.request, self._is_abandoned = None, True
            self.take()

    def _body(self, function: Callable[[Turn], object]) -> None:
        self._go.acquire()
        try:
            if self._is_abandoned:
                return
            with shard_group(self):
                function(self)
        except _Abandoned:
            pass
        except BaseException as error:  # a model that calls sys.exit must not end its thread only
            self.error = error
        finally:
            self._back.release()


class LockStep:
    """Runs the shards of one rank in step with those of all others. Construct and call on all ranks alike."""

    def __init__(
        self,
        communicator: Communicator,
        num_shards: int,
        parameters: FlatParameters,
        buffers: Buffers,
        clock: PhaseClock,
    ) -> None:
        self._communicator = communicator
        self._parameters, self._buffers, self._clock = parameters, buffers, clock
        runs = [shard_run(num_shards, communicator.size, rank) for rank in range(communicator.size)]
        self._width = max(1, max(len(run) for run in runs))
        self.totals: list[Array] = []
        """The sums of the last run, in the order in which every shard asked for them."""
        self._rows = np.concatenate([rank * self._width + np.arange(len(run)) for rank, run in enumerate(runs)])

    def run(self, functions: Mapping[int, Callable[[Turn], object]], before: Sequence[Callable[[], object]]) -> bool:
        """Run each of `functions`, keyed by the position of its shard in this rank's run, after those of `before`.

        Shards without samples, which sum nothing, are among the latter.

        Collective, also where it raises: all ranks leave together.

        Returns whether all shards of all ranks have been computed; if not, some rank has raised.

        Raises:
            DistributedError: on one rank, if shards do not ask for the same sums.
            Exception: whatever a function of this rank raised.
        """
        self.totals.clear()
        failure = _first_failure(before)
        turns = {index: Turn(function) for index, function in functions.items()}
        try:
            while True:
                failure = failure or self._advance(list(turns.values()))
                asking = {index: turn.request for index, turn in turns.items() if turn.request is not None}
                states = self._exchange_states(turns, asking, failure)
                if failure is not None:
                    raise failure
                if (states[:, 0] == _State.FAILED).any():
                    return False
                if not (states[:, 0] == _State.ASKS).any():
                    return True
                if not self._agrees(states):
                    return False
                total = self._total(asking, int(states[:, 1].max()))
                self.totals.append(total)
                for index in asking:
                    turns[index].answer(total)
        finally:
            for turn in turns.values():
                turn.abandon()

    def _advance(self, turns: Sequence[Turn]) -> BaseException | None:
        """One turn for each shard that is not at its end; the first error, with which the round ends."""
        for turn in turns:
            if turn.is_finished:
                continue
            if turn.suspended is not None:
                self._parameters.resume(turn.suspended[0])
                self._buffers.resume(turn.suspended[1])
            turn.take()
            if turn.error is not None:
                return turn.error
            if turn.request is not None:
                turn.suspended = (self._parameters.suspend(), self._buffers.suspend())
                self._clock.lap(turn.phase)
        return None

    def _exchange_states(
        self, turns: Mapping[int, Turn], asking: Mapping[int, Array], failure: BaseException | None
    ) -> npt.NDArray[np.int64]:
        """What every rank says, one row (state, number of values asked for) each, and -1 values where shards differ."""
        widths = {request.size for request in asking.values()}
        if failure is not None:
            state = _State.FAILED
        elif asking:
            state = _State.ASKS
        else:
            state = _State.FINISHED if turns else _State.NO_SHARDS
        width = widths.pop() if len(widths) == 1 and len(asking) == len(turns) else -len(asking)
        states = np.zeros((self._communicator.size, 2), np.int64)
        self._communicator.allgather(np.array([state, width], np.int64), states)
        return states

    def _agrees(self, states: npt.NDArray[np.int64]) -> bool:
        """Whether all shards ask for a sum of the same size. If not, the lowest rank that asks raises."""
        asks = states[:, 0] == _State.ASKS
        widths = np.unique(states[asks, 1])
        if widths.size == 1 and widths[0] >= 0 and not (states[:, 0] == _State.FINISHED).any():
            return True
        if self._communicator.rank == np.flatnonzero(asks)[0]:
            raise DistributedError(
                f"rank {self._communicator.rank}: a module of the model sums over all shards, and not all shards ask "
                "for the same sums at the same time. The model must do the same on every shard, whatever "
                "the samples are"
            )
        return False

    def _total(self, asking: Mapping[int, Array], width: int) -> Array:
        """The sum over all shards along the reduction tree; shards without samples count as zeros."""
        own = np.zeros((self._width, width))
        for index, request in asking.items():
            own[index] = request
        table = np.empty((self._communicator.size, own.size))
        self._communicator.allgather(own.reshape(-1), table)
        self._clock.lap(Phase.RANK_WAIT)
        total: Array = tree_sum(table.reshape(-1, width)[self._rows])
        return total


def _first_failure(functions: Sequence[Callable[[], object]]) -> BaseException | None:
    try:
        for function in functions:
            function()
    except BaseException as error:
        return error
    return None
