"""HTTP for people and for Prometheus: read-only views of the state.

Knows how to show; it changes nothing, and owns no socket.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from ddp_bp.coordinator.metrics import JobCollector
from ddp_bp.coordinator.scrapes import Scrapes
from ddp_bp.coordinator.space import RunDirectorySpace
from ddp_bp.coordinator.state import Coordinator
from ddp_bp.coordinator.status import history_of, ready_problem, status_of


def make_app(
    coordinator: Coordinator,
    clock: Callable[[], float],
    disk_alive: Callable[[], bool],
    remember: Callable[[], Awaitable[None]],
    scrapes: Scrapes,
) -> Starlette:
    """The web application of one coordinator. It must run in the thread that handles the coordinator's events.

    `remember` writes down what is counted at the moment of the call. No counter is shown before that, so that a process
    that takes this one's place does not show less. `scrapes` is told of everybody who reads the metrics.
    """
    registry = CollectorRegistry(auto_describe=False)
    collector = JobCollector(coordinator, clock)
    registry.register(collector)
    space = RunDirectorySpace(coordinator.config.run_dir)
    page = files("ddp_bp.coordinator").joinpath("page.html").read_text(encoding="utf-8")

    async def metrics(request: Request) -> Response:
        collector.room = await space.room()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        content = encode(registry)
        scrapes.note(_reader(request), clock(), _timeout_seconds(request))
        await remember()
        return Response(content, headers={"content-type": content_type})

    async def healthz(_: Request) -> Response:
        if disk_alive():
            return PlainTextResponse("ok\n")
        return PlainTextResponse("the disk writer has died; restart the job\n", status_code=503)

    async def readyz(_: Request) -> Response:
        problem = ready_problem(coordinator)
        return PlainTextResponse("ok\n" if problem is None else f"{problem}\n", 200 if problem is None else 503)

    async def status(_: Request) -> Response:
        lingers_seconds = scrapes.awaited_seconds(clock()) if coordinator.ends_for_good else 0.0
        return _json({**status_of(coordinator, clock()), "lingers_seconds": lingers_seconds})

    async def history(_: Request) -> Response:
        return _json(history_of(coordinator))

    async def index(_: Request) -> Response:
        return HTMLResponse(page)

    return Starlette(
        routes=[
            Route("/", index),
            Route("/metrics", metrics),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/api/status", status),
            Route("/api/history", history),
        ]
    )


def _reader(request: Request) -> str:
    """Who asks, as far as one can tell: a Prometheus has a new connection each time, but not another name."""
    host = request.client.host if request.client else ""
    return f"{host} {request.headers.get('user-agent', '')}"


def _timeout_seconds(request: Request) -> float | None:
    """How long a Prometheus waits for the answer, as it says itself."""
    try:
        seconds = float(request.headers.get("x-prometheus-scrape-timeout-seconds", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json", headers={"cache-control": "no-store"})
