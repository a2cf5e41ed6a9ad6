"""What a tool asks of a running coordinator, one question at a time.

Blocking and without threads. It knows the messages, and nothing of what the coordinator does with them.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from types import TracebackType
from typing import Any, TypeVar

import zmq

from ddp_bp._version import __version__
from ddp_bp.coordinator.address import CoordinatorAddress, read_address
from ddp_bp.errors import AddressError, DeadlineError, InputError
from ddp_bp.wire import messages as m
from ddp_bp.wire.codec import decode_from_coordinator, encode

__all__ = ["CoordinatorAddress", "ToolClient", "read_address"]

_Reply = TypeVar("_Reply", bound=m.FromCoordinator)


class ToolClient:
    """A connection to a coordinator. Use it in a `with` statement.

    Its methods raise AddressError when nobody answers at the address or the coordinator is that of another run,
    DeadlineError when an answer does not come in time, and WireError when it cannot be read.
    """

    def __init__(self, address: str, run_id: str, timeout_seconds: float = 5.0) -> None:
        """`address` as in `CoordinatorAddress.address`; `timeout_seconds` is for an answer that needs no work."""
        self._address = address
        self._run_id = run_id
        self._timeout_seconds = timeout_seconds
        self._welcome = False
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.IPV6, int("[" in address))
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise AddressError(
                f"{address!r} is no address of a coordinator: {error}; expected tcp://HOST:PORT"
            ) from error

    def status(self) -> dict[str, Any]:
        """The same content as /api/status."""
        return self._ask(m.StatusRequest(), m.StatusReply, self._timeout_seconds).status

    def stacks(self) -> list[dict[str, Any]]:
        """Where every rank is, and the Python stacks of those that answer; see `StacksReply`."""
        return self._ask(m.StacksRequest(), m.StacksReply, self._timeout_seconds).ranks

    def request_checkpoint(self, timeout_seconds: float = 120.0) -> m.CheckpointDone:
        """Asks for a checkpoint now, and waits until it is durable or was dropped."""
        request_id = f"request-{secrets.token_hex(4)}"
        return self._ask(m.CheckpointRequest(request_id), m.CheckpointDone, timeout_seconds)

    def stop(self, reason: m.StopCause = "user") -> None:
        """Tells the job to end at its next step, with a checkpoint; returns when the ranks were told."""
        self._ask(m.StopRequest(reason), m.Acknowledged, self._timeout_seconds)

    def scale(self, num_workers: int) -> None:
        """Asks for another number of ranks; returns when that is noted, long before they train.

        Raises:
            InputError: there cannot be so many; it says why.
        """
        answer = self._ask(m.ScaleRequest(num_workers), m.Acknowledged, self._timeout_seconds)
        if not answer.ok:
            raise InputError(answer.message)

    def close(self) -> None:
        self._context.destroy(linger=200)

    def __enter__(self) -> ToolClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, question: m.FromWorker, reply: type[_Reply], timeout_seconds: float) -> _Reply:
        if not self._welcome:
            hello = m.Hello(
                m.PROTOCOL_VERSION,
                __version__,
                self._run_id,
                rank=m.TOOL_RANK,
                world_size=0,
                pid=os.getpid(),
                hostname=socket.gethostname(),
                shards=0,
                role="tool",
            )
            self._exchange(hello, m.Welcome, self._timeout_seconds, f"no coordinator answers at {self._address}")
            self._welcome = True
        return self._exchange(question, reply, timeout_seconds, f"the coordinator at {self._address} is busy or gone")

    def _exchange(self, message: m.FromWorker, reply: type[_Reply], timeout_seconds: float, otherwise: str) -> _Reply:
        deadline = time.monotonic() + timeout_seconds
        self._socket.send_multipart(encode(message))
        while self._socket.poll(max(0, round((deadline - time.monotonic()) * 1000))):
            answer, _ = decode_from_coordinator(self._socket.recv_multipart())
            if isinstance(answer, reply):
                return answer
            if isinstance(answer, m.Refused):
                raise AddressError(f"the coordinator at {self._address} refuses: {answer.reason}")
        what = m.type_name(message).replace("_", " ")
        error = AddressError if isinstance(message, m.Hello) else DeadlineError
        raise error(f"{what}: {otherwise}; expected an answer within {timeout_seconds:g} s, got none")
