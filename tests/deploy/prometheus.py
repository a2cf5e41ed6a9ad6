"""A real Prometheus server for tests, on a port of its own and with its data in a folder of the test's."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from support import wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def why_not() -> str | None:
    """Why there can be no Prometheus here, or None."""
    missing = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
    return f"needs {' and '.join(missing)} (Debian: apt-get install prometheus)" if missing else None


class Prometheus:
    """A server that runs."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer. Raises AssertionError with what the server says when it refuses the question."""
        try:
            with urllib.request.urlopen(
                f"{self._url}/{path}?{urllib.parse.urlencode(parameters)}", timeout=10
            ) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now."""
        return self.get("query", query=expression)["result"]

    def alerts(self) -> set[tuple[str, str]]:
        """(alert, instance) of all that fire."""
        return set(self.active_since())

    def active_since(self) -> dict[tuple[str, str], float]:
        """(alert, instance) of all that fire, and since when, in Unix seconds."""
        return {
            (alert["labels"]["alertname"], alert["labels"]["instance"]): datetime.fromisoformat(
                alert["activeAt"]
            ).timestamp()
            for alert in self.get("alerts")["alerts"]
            if alert["state"] == "firing"
        }

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self._url.replace("api/v1", "-/ready"), timeout=5):
                return True
        except OSError:
            return False


@contextlib.contextmanager
def prometheus(folder: Path, config: str) -> Iterator[Prometheus]:
    """A Prometheus with this configuration, whose files `folder` holds; it ends with the block."""
    (folder / "prometheus.yml").write_text(config)
    port = free_port()
    with (folder / "prometheus.log").open("w") as log:
        server = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        running = Prometheus(port)
        wait_until(lambda: server.poll() is not None or running.is_ready(), "Prometheus")
        assert server.poll() is None, (folder / "prometheus.log").read_text()
        yield running
    finally:
        server.kill()
        server.wait(10)
