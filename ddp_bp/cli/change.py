"""A running job that is to go on otherwise: from the wish to the moment when its ranks are told to stop.

First a checkpoint is taken, since a job that cannot save its work must not be stopped. Knows neither the coordinator
nor how anybody is told.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ddp_bp.cli.resize import Resizing, Wish
from ddp_bp.wire.messages import StopCause


class Change:
    """The wish that is followed in one start of a job, if any."""

    def __init__(
        self,
        resizing: Resizing,
        begin_checkpoint: Callable[[], Future[str]],
        say: Callable[[str], None],
        complain: Callable[[str], None],
    ) -> None:
        """`begin_checkpoint`: asks for one; the result is what was against it, and empty if it is durable."""
        self.wish: Wish | None = None
        self._resizing, self._begin_checkpoint = resizing, begin_checkpoint
        self._say, self._complain = say, complain
        self._trial: Future[str] | None = None

    def follow(self, status: dict[str, Any], now: float) -> None:
        """Take up what is wished, by what /api/status says, unless a wish is followed already."""
        if self.wish is None and (wish := self._resizing.wish(status, now)) is not None:
            self.wish = wish
            self._say(f"{wish.why}; saving a checkpoint")
            self._trial = self._begin_checkpoint()

    def forget_trial(self) -> None:
        """The checkpoint that was asked for will not come, since whom it was asked of is no more. It is asked for again
        when the wish is taken up anew."""
        if self._trial is not None:
            self.wish = self._trial = None
            self._resizing.take_back(None)

    def told(self, status: Callable[[], dict[str, Any] | None], now: float) -> StopCause | None:
        """What the ranks are to be told to stop for, as soon as they may be. `status`: the newest, None if there is
        none."""
        if self._trial is not None and self._trial.done():
            problem, self._trial = self._trial.result(), None
            if problem:
                self.wish = None
                newest = status()
                # One that has ended meanwhile needs no checkpoint; if only the coordinator has, the next one is asked.
                goes_on = newest is not None and newest["state"] == "training"
                self._resizing.take_back(now if goes_on else None)
                if goes_on:
                    self._complain(f"ddp-bp: {problem}; so the job does not stop, and goes on as it is")
        return self.wish.cause if self.wish is not None and self._trial is None else None
