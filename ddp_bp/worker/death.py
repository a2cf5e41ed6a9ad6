"""A rank that kills itself at a named point of its work, so that it can be seen what the others make of it.

Points are functions that its training thread calls, as in `activity`, and Python's own tracing says when. So no module
has a place for it, and a rank that was not told to die is not traced. Knows neither who asks for deaths nor what is
expected of those that are left.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from types import CodeType, FrameType, MappingProxyType
from typing import Any, Final, Literal, NamedTuple, NoReturn, get_args

import msgspec

from ddp_bp.engine.value import Value
from ddp_bp.errors import InputError
from ddp_bp.optim import Optimizer
from ddp_bp.parallel.agreement import Agreement
from ddp_bp.parallel.bucket_exchange import BucketExchange
from ddp_bp.parallel.journal import Journal
from ddp_bp.parallel.mpi import MpiCommunicator
from ddp_bp.parallel.single import SingleCommunicator
from ddp_bp.parallel.walk import total_of
from ddp_bp.worker.checkpointing import Checkpointing
from ddp_bp.worker.loop import TrainingLoop
from ddp_bp.worker.objective import Objective
from ddp_bp.worker.recovery import Recovery
from ddp_bp.worker.redo import MarkedBlock
from ddp_bp.worker.team import brief, build_team
from ddp_bp.worker.update import Update

Point = Literal[
    "forward",
    "backward",
    "before-agree",
    "agree",
    "reduce",
    "optimizer",
    "before-commit",
    "checkpoint",
    "recovery",
    "join",
]
"""In the order of a step. `forward`, `backward`: in the middle of that of a shard; `before-agree`: all is computed and
noted, and nobody else has been told; `agree`: in the middle of the call of MPI that tells all, from another thread;
`reduce`: it knows that all were ready, and is about to sum a block of its slice; `optimizer`: in the middle of changing
a block; `before-commit`: its slice is done; `checkpoint`: its part has begun to be sent; `recovery`: while it goes on
without another rank; `join`: while a spare joins the team that goes on, or is told where that stands."""
POINTS: Final[tuple[Point, ...]] = get_args(Point)


class Death(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`rank`, as numbered at the start, dies at `point`: when it comes there in step `step` or later, after it has
    passed it `passes` times."""

    rank: int
    point: Point
    step: int
    passes: int = 0


class _Place(NamedTuple):
    """Where a point is: any of these functions, or (`inside`) any traced event within a call of one of them.

    `module`: inside of them, what that module, or any of several, and those below it do alone. `caller`: the function
    whose calls count. `aside`: another thread ends the process as soon as this one gives way, which it does within MPI.
    """

    functions: frozenset[CodeType]
    event: Literal["call", "line", "return"] = "call"
    inside: bool = False
    module: str | tuple[str, ...] = ""
    caller: CodeType | None = None
    aside: bool = False


def _codes(*functions: Callable[..., Any]) -> frozenset[CodeType]:
    return frozenset(function.__code__ for function in functions)


# What updates a block, and what marks how far that is.
_OPTIMIZER_MODULES = (Optimizer.__module__.rpartition(".")[0], MarkedBlock.__module__, Journal.__module__)
_PLACES: Mapping[Point, _Place] = MappingProxyType(
    {
        "forward": _Place(_codes(Objective.train), inside=True),
        "backward": _Place(_codes(Value.backward), inside=True),
        "before-agree": _Place(_codes(Agreement.conclude)),
        "agree": _Place(
            _codes(MpiCommunicator.allgather, SingleCommunicator.allgather),
            caller=Agreement.conclude.__code__,
            aside=True,
        ),
        "reduce": _Place(_codes(total_of, BucketExchange.reduce)),
        "optimizer": _Place(_codes(Update._update_block), "line", True, _OPTIMIZER_MODULES),
        "before-commit": _Place(_codes(MpiCommunicator.barrier), caller=Update.take_step.__code__),
        "checkpoint": _Place(_codes(Checkpointing.begin), "return"),
        "recovery": _Place(_codes(Recovery.run, TrainingLoop.go_on), inside=True, module="ddp_bp"),
        "join": _Place(_codes(build_team, brief, TrainingLoop._brief_newcomers), inside=True, module="ddp_bp"),
    }
)
_SAID = re.compile(r"ddp-bp: rank (?P<rank>\d+) kills itself at step (?P<step>\d+): (?P<point>[a-z-]+)$")


def encode_deaths(deaths: list[Death]) -> str:
    """Deaths as a line of text; empty if there are none."""
    return msgspec.json.encode(deaths).decode() if deaths else ""


def decode_deaths(text: str) -> list[Death]:
    """What `encode_deaths` gave; none if there is no text. Raises InputError."""
    try:
        return msgspec.json.decode(text, type=list[Death]) if text else []
    except msgspec.MsgspecError as error:
        raise InputError(f"deaths of ranks: expected what `ddp-bp chaos` writes, got {text!r}: {error}") from None


def read_death(line: str) -> Death | None:
    """The death that a rank announced with this line of its stderr, if that is what it says."""
    found = _SAID.match(line.strip())
    if found is None:
        return None
    try:
        return msgspec.convert({**found.groupdict(), "passes": 0}, Death, strict=False)
    except msgspec.ValidationError:
        return None


def die_at(death: Death, step: Callable[[], int]) -> None:
    """From now on this thread, and those that it starts, watch for that point, and then end the process by SIGKILL.

    `step`: how many steps are committed.
    """
    tracer = _Tracer(death, step)
    threading.settrace(tracer.call)
    sys.settrace(tracer.call)


class _Tracer:
    """What Python calls while it traces; see `sys.settrace`."""

    def __init__(self, death: Death, step: Callable[[], int]) -> None:
        self._death, self._step = death, step
        self._place = _PLACES[death.point]
        self._passes_left = death.passes

    def call(self, frame: FrameType, event: str, _: object) -> Any:
        """A function has been called: whether what it does is to be followed."""
        if not self._is_there(frame):
            return None
        if self._place.event == "call":
            self._pass()
            return None
        return self._follow

    def _follow(self, _: FrameType, event: str, __: object) -> Any:
        if event == self._place.event:
            self._pass()
        return self._follow

    def _is_there(self, frame: FrameType) -> bool:
        place = self._place
        if self._step() < self._death.step:
            return False
        if not place.inside:
            is_place = frame.f_code in place.functions
            if place.caller is not None:
                is_place = is_place and frame.f_back is not None and frame.f_back.f_code is place.caller
        else:
            module = frame.f_globals.get("__name__", "")
            is_place = module.startswith(place.module) and _is_inside(frame, place.functions)
        return is_place

    def _pass(self) -> None:
        self._passes_left -= 1
        if self._passes_left >= 0:
            return
        if self._place.aside:
            threading.Thread(target=_die, args=(self._death, self._step()), name="death", daemon=True).start()
        else:
            _die(self._death, self._step())


def _is_inside(frame: FrameType | None, functions: frozenset[CodeType]) -> bool:
    while frame is not None:
        if frame.f_code in functions:
            return True
        frame = frame.f_back
    return False


def _die(death: Death, step: int) -> NoReturn:
    # One system call, so that no other rank's line comes in between, and nothing of it is left in a buffer.
    os.write(2, f"ddp-bp: rank {death.rank} kills itself at step {step}: {death.point}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a process goes on after SIGKILL")
