"""Failing together: a rank never raises alone, and each error or warning is shown once."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

from ddp_bp.errors import DdpError, PeerLostError, RemoteError
from ddp_bp.parallel.agreement import Verdict
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.worker.source_lines import own_line

Result = TypeVar("Result")


class RankFailure(DdpError):
    """This rank's own `error`, of which all ranks know. `shown`: whether it has been printed."""

    def __init__(self, error: BaseException, *, shown: bool) -> None:
        super().__init__(str(error))
        self.error, self.shown = error, shown
        self.exit_code = getattr(error, "exit_code", 1)


def print_failure(error: BaseException, rank: int, step: int) -> str:
    """Show a rank's own error before the others hear of it, so that it stands first. Returns its traceback."""
    text = "".join(traceback.format_exception(error))
    is_ours = isinstance(error, DdpError)
    where = own_line(error) if is_ours else ""
    print(f"ddp-bp: rank {rank} failed at step {step}: {type(error).__name__}: {error}{where}", file=sys.stderr)
    if not is_ours:
        print(text, end="", file=sys.stderr)
    sys.stderr.flush()
    return text


def warn(text: str) -> None:
    """Tell the user something that does not stop the job; what all ranks know alike, on one of them."""
    print(f"ddp-bp: warning: {text}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Tell the user something that needs no attention, on one of the ranks."""
    print(f"ddp-bp: {text}", file=sys.stderr, flush=True)


def raise_together(verdict: Verdict, failure: BaseException | None, where: str) -> None:
    """Raise what the ranks agreed on: RankFailure on one that failed, and has shown why; RemoteError on the others."""
    if failure is not None:
        raise RankFailure(failure, shown=True) from failure
    if verdict.failed_ranks:
        raise RemoteError(f"stopped {where}, because rank {verdict.failed_ranks[0]} failed")


def together(communicator: Communicator, function: Callable[[], Result]) -> Result:
    """Call `function` on every rank; if it raises anywhere, raise everywhere. Collective.

    Raises:
        RankFailure: on the lowest rank that failed, with its own error, to be shown.
        RemoteError: on all other ranks, with the exit code of that error.
    """
    failure: BaseException | None = None
    try:
        result = function()
    except PeerLostError:
        raise
    except BaseException as error:  # also SystemExit: the other ranks must hear of it
        failure = error
    exit_code = 0 if failure is None else getattr(failure, "exit_code", 1)
    codes = [json.loads(data) for data in communicator.allgather_bytes(json.dumps(exit_code).encode())]
    failed = [rank for rank, code in enumerate(codes) if code]
    if not failed:
        return result
    if failure is not None and communicator.rank == failed[0]:
        raise RankFailure(failure, shown=False) from failure
    raise RemoteError(f"stopped, because rank {failed[0]} failed", codes[failed[0]])
