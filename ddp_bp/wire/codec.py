"""Messages to frames and back.

Frame 0 is one message in msgpack; each further frame is a raw payload, not copied. Anything that is not exactly a
message of the expected direction is a `WireError`; nothing is ever unpickled. This module knows no socket.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from ddp_bp.errors import WireError
from ddp_bp.wire.messages import CheckpointChunk, FromCoordinator, FromWorker, Message, type_name

Buffer = bytes | bytearray | memoryview
_M = TypeVar("_M", bound=Message)

_ENCODER: Final = msgspec.msgpack.Encoder()
_FROM_WORKER: Final[msgspec.msgpack.Decoder[FromWorker]] = msgspec.msgpack.Decoder(FromWorker)
_FROM_COORDINATOR: Final[msgspec.msgpack.Decoder[FromCoordinator]] = msgspec.msgpack.Decoder(FromCoordinator)

# msgspec lets through what Python itself raises on broken UTF-8, on dates out of range and on deep nesting.
_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)


def num_payloads(message: Message) -> int:
    """How many payload frames follow a message."""
    return 1 if isinstance(message, CheckpointChunk) else 0


def encode(message: FromWorker | FromCoordinator, payloads: Sequence[Buffer] = ()) -> list[Buffer]:
    """Frames of a message. Payloads are passed on as they are, so they must not change until they are sent.

    Raises WireError where a field holds something that msgpack cannot write, for instance a NumPy scalar, or where the
    number of payloads is not that of the message.
    """
    expected = num_payloads(message)
    if len(payloads) != expected:
        raise WireError(f"message {type_name(message)}: expected {expected} payload frames, got {len(payloads)}")
    try:
        head = _ENCODER.encode(message)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise WireError(
            f"message {type_name(message)} cannot be encoded: {error}; "
            "use plain Python ints, floats, strings, lists and dicts"
        ) from error
    return [head, *payloads]


def decode_from_worker(frames: Sequence[Buffer]) -> tuple[FromWorker, list[Buffer]]:
    """A message that a worker or a tool sent, and its payloads. Raises WireError for anything else."""
    message, payloads = _decode(_FROM_WORKER, frames, "a worker")
    return message, payloads


def decode_from_coordinator(frames: Sequence[Buffer]) -> tuple[FromCoordinator, list[Buffer]]:
    """A message that the coordinator sent, and its payloads. Raises WireError for anything else."""
    message, payloads = _decode(_FROM_COORDINATOR, frames, "the coordinator")
    return message, payloads


def _decode(decoder: msgspec.msgpack.Decoder[_M], frames: Sequence[Buffer], sender: str) -> tuple[_M, list[Buffer]]:
    if not frames:
        raise WireError(f"message from {sender}: expected at least one frame, got none")
    try:
        message = decoder.decode(frames[0])
    except _UNREADABLE as error:
        raise WireError(
            f"message from {sender} of {len(frames[0])} bytes cannot be read: {error}; "
            "do both sides run the same ddp_bp?"
        ) from error
    expected = num_payloads(message)
    if len(frames) - 1 != expected:
        raise WireError(
            f"message {type_name(message)} from {sender}: expected {expected} payload frames, got {len(frames) - 1}"
        )
    return message, list(frames[1:])
