"""A web server for tests that misbehaves as it is told: one behaviour for each request, then good ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class MisbehavingServer(ThreadingHTTPServer):
    """Serves `content` by path. `script` holds what to do with the next requests; `asked` what has been asked for.

    Behaviours: "good"; ("cut", n): n bytes of what was promised; ("status", code); "ignore range", or with n bytes of
    what was promised; "reset": no answer; "silent": no answer until the server ends; ("wrong start", n): another range
    than that asked for; "chunked": without a length; ("cut chunked", n).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content: dict[str, bytes] = {}
        self.script: list[Any] = []
        self.asked: list[tuple[str, str | None]] = []
        self.ending = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    server: MisbehavingServer

    def do_GET(self) -> None:
        server, wish = self.server, self.headers["Range"]
        server.asked.append((self.path, wish))
        behaviour = server.script.pop(0) if server.script else "good"
        kind, argument = behaviour if isinstance(behaviour, tuple) else (behaviour, 0)
        content = server.content.get(self.path)
        if kind == "silent":
            server.ending.wait(20)
        if kind in ("reset", "silent"):
            return
        if kind == "status" or content is None:
            self.send_error(argument if kind == "status" else 404)
            return
        start = 0 if wish is None or kind == "ignore range" else int(wish.removeprefix("bytes=").removesuffix("-"))
        if kind == "wrong start":
            start = argument
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start or kind == "wrong start" else 200)
        if start or kind == "wrong start":
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        rest = content[start:]
        if "chunked" in kind:
            self.protocol_version = "HTTP/1.1"
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            sent = rest[:argument] if kind == "cut chunked" else rest
            self.wfile.write(f"{len(rest):x}\r\n".encode() + sent + (b"\r\n0\r\n\r\n" if sent == rest else b""))
            return
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[:argument] if kind in ("cut", "ignore range") and argument else rest)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def misbehaving_server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.ending.set()
            server.shutdown()
            thread.join(10)
