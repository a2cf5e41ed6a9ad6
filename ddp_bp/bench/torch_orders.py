"""What a rank tells the process that computes with PyTorch on its behalf, and what that answers: one JSON a line.

Orders are taken one after another; each has one answer. The end of its input ends the process.
"""

from __future__ import annotations

from typing import BinaryIO, TypeVar

import msgspec

Message = TypeVar("Message", bound=msgspec.Struct)


class Look(msgspec.Struct, tag=True):
    """See whether PyTorch with gloo is there; on rank 0, listen on `host` for the others. Answered by `Found`."""

    host: str
    rank: int
    world_size: int


class Join(msgspec.Struct, tag=True):
    """Form a process group with the others, whom rank 0 waits for at this address. Answered by `Done`."""

    host: str
    port: int


class Build(msgspec.Struct, tag=True):
    """Build DistributedDataParallel of this bucket size, in the place of any other of that size. Answered by `Done`."""

    widths: tuple[int, ...]
    batch_per_rank: int
    bucket_mb: int


class Steps(msgspec.Struct, tag=True):
    """Train the network of this bucket size for so many steps. Answered by `Done`, with the last loss."""

    bucket_mb: int
    count: int


class Leave(msgspec.Struct, tag=True):
    """Leave the process group. Answered by `Done`."""


Order = Look | Join | Build | Steps | Leave


class Found(msgspec.Struct):
    """PyTorch's version, None if it is not there; and the port on which rank 0 listens."""

    version: str | None
    port: int = 0


class Done(msgspec.Struct):
    """`loss`: of this rank, in the last step; None where there was no step."""

    loss: float | None = None


def send(stream: BinaryIO, message: msgspec.Struct) -> None:
    """Write a message and let the other side have it at once."""
    stream.write(msgspec.json.encode(message) + b"\n")
    stream.flush()
