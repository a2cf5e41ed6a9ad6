"""Binding of the coordinator's two ports, with errors that say which one and what to do.

Knows addresses; not what is said there.
"""

from __future__ import annotations

import os
import socket
from typing import Final

import zmq
import zmq.asyncio

from ddp_bp.coordinator.address import CoordinatorAddress
from ddp_bp.errors import AddressError
from ddp_bp.wire.messages import MAX_FRAME_BYTES

_RECEIVE_QUEUE: Final = 64
"""Messages per connection that wait to be read. Beyond these the sender waits, so a checkpoint cannot fill memory."""


def bind_http(host: str, port: int, called: str = "HTTP port") -> socket.socket:
    """A listening TCP socket; port 0: any free one. Raises AddressError, about a port that is `called` so."""
    family, numeric_host = _resolve(host)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((numeric_host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise AddressError(_refusal(called, host, port, error.strerror or str(error))) from error
    return listener


def bind_router(
    context: zmq.asyncio.Context, host: str, port: int, http_socket: socket.socket, run_id: str
) -> tuple[zmq.asyncio.Socket, CoordinatorAddress]:
    """The socket that workers and tools connect to, and where to find it; port 0: any free one. Raises AddressError."""
    family, numeric_host = _resolve(host)
    router = context.socket(zmq.ROUTER)
    # Tell when a peer is gone instead of dropping silently, and let a peer that reconnects keep its identity.
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.ROUTER_HANDOVER, 1)
    router.setsockopt(zmq.RCVHWM, _RECEIVE_QUEUE)
    router.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    router.setsockopt(zmq.IPV6, int(family == socket.AF_INET6))
    try:
        router.bind(f"tcp://{_bracketed(numeric_host)}:{port or '*'}")
    except zmq.ZMQError as error:
        router.close(linger=0)
        raise AddressError(_refusal("port", host, port, zmq.strerror(error.errno or 0))) from error
    bound_port = int(router.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
    http_port = int(http_socket.getsockname()[1])
    return router, CoordinatorAddress(
        pid=os.getpid(),
        host=reachable_host(numeric_host),
        port=bound_port,
        http_port=http_port,
        run_id=run_id,
        address=f"tcp://{_bracketed(reachable_host(numeric_host))}:{bound_port}",
        url=f"http://{_bracketed(reachable_host(str(http_socket.getsockname()[0])))}:{http_port}/",
    )


def reachable_host(host: str) -> str:
    """What others call a numeric host that was bound: itself, but this machine's name where it means all of them."""
    return socket.gethostname() if host in ("0.0.0.0", "::") else host


def _resolve(host: str) -> tuple[socket.AddressFamily, str]:
    try:
        found = socket.getaddrinfo("0.0.0.0" if host in ("*", "") else host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise AddressError(f"host {host!r} is not known here: {error}; give an address of this machine") from error
    family, _, _, _, address = found[0]
    return family, str(address[0])


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _refusal(what: str, host: str, port: int, error: str) -> str:
    return f"{what} {port} on {host} cannot be used: {error}; choose another {what}, or 0 for any free one"
