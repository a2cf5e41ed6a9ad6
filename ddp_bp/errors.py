"""Every error that ddp_bp raises on purpose, in one tree.

    DdpError                      something failed; exit code 1
    |-- InputError                what the user gave cannot be used; nothing was started; exit code 2
    |   |-- RecipeError           a recipe or an override; carries every problem found
    |   |-- DataError             a data file or its contents
    |   |-- CheckpointError       a checkpoint that is missing, damaged or of another run
    |   |   `-- NewerFormatError  ... that is whole, and that only a later ddp_bp can read
    |   |-- AddressError          a port or an address that cannot be used
    |   `-- HostError             hosts that ranks cannot be started on; carries every problem found
    |-- EngineError               a tensor operation was given something it cannot work with
    |   |-- ShapeError            ... shapes, axes or numbers of elements   (also a ValueError)
    |   |-- DtypeError            ... element types                         (also a TypeError)
    |   `-- GraphError            backward on a graph that cannot give it   (also a RuntimeError)
    |-- DistributedError          ranks could not work together
    |   |-- LaunchError           the ranks that started are not the job that was asked for
    |   |-- DisagreementError     ranks differ in step, parameter layout, membership, BLAS or results
    |   |-- DeadlineError         a wait between processes passed its deadline
    |   |-- PeerLostError         a rank has died; the others can go on without it
    |   |-- NodeLostError         those that are left cannot go on in place; the job goes on from a checkpoint
    |   |-- CoordinatorLostError  the coordinator is gone for good, with the rank that had started it
    |   `-- RemoteError           another rank failed; that rank shows why
    |-- DownloadError             a file could not be had from any of its addresses
    `-- WireError                 a message that cannot be read, or of another version

A message names the actor (rank, step, parameter, file), what was expected, what was got, and what to do.
This module knows nothing of the rest of the package, and every room may import it.
"""

from __future__ import annotations

from collections.abc import Sequence


class DdpError(Exception):
    """Base of all errors of ddp_bp. `exit_code` is what a command exits with when it ends on this error."""

    exit_code = 1
    on_every_rank = False
    """Whether all ranks of a job raise this together, so that one of them is enough to show it."""
    restart_helps = False
    """Whether a job that starts again from its newest checkpoint need not meet this again."""


class InputError(DdpError):
    """Something the user gave cannot be used. Raised before anything is started or written."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe that cannot be trained. `problems` holds every problem found, one line each."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join([f"{source} cannot be used:", *(f"  {problem}" for problem in problems)]))


class DataError(InputError):
    """A data file that is missing, or whose contents cannot be trained on."""


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged, of another format, or of another run."""


class NewerFormatError(CheckpointError):
    """A checkpoint of a later format. It is not damaged, so that nothing may pass over it as if it were."""


class AddressError(InputError):
    """A port or an address that cannot be bound or reached."""


class HostError(InputError):
    """Hosts that ranks cannot be started on. `problems` holds every problem found, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(["the job cannot start on these hosts:", *(f"  {problem}" for problem in problems)]))


class DownloadError(DdpError):
    """A file that could not be downloaded, for whatever reason lies on the way or at the other end."""


class EngineError(DdpError):
    """A tensor operation was given something it cannot work with."""


class ShapeError(EngineError, ValueError):
    """Shapes, axes or numbers of elements that do not fit together."""


class DtypeError(EngineError, TypeError):
    """An element type that the operation does not take."""


class GraphError(EngineError, RuntimeError):
    """Backward was asked of a graph that cannot give it."""


class DistributedError(DdpError):
    """Ranks could not work together."""


class LaunchError(DistributedError):
    """The ranks that started are not the job that was asked for."""


class DisagreementError(DistributedError):
    """Ranks differ in step, parameter layout, membership or BLAS, or in what they hold or compute."""

    on_every_rank = True


class DeadlineError(DistributedError):
    """A wait between processes passed its deadline."""


class PeerLostError(DistributedError):
    """A rank of the communicator has died, or its death was made known by another rank. The communicator is of no more
    use, but for `survivors`."""


class NodeLostError(DistributedError):
    """Those that are left cannot go on in place: all ranks that shared a memory have died, and with it what only they
    had, a part of the optimizer's state; or one of those that are left lacks what it needs."""

    on_every_rank = True
    restart_helps = True


class CoordinatorLostError(DistributedError):
    """The coordinator is gone for good: it ended with the rank that had started it."""

    on_every_rank = True


class RemoteError(DistributedError):
    """Another rank failed. That rank shows the cause; this one only stops, with the same exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class WireError(DdpError):
    """A message that cannot be read, or of another protocol version."""
