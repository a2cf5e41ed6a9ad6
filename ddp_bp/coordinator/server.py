"""The process around the state machine: it owns the sockets, the clock, the disk thread and the HTTP port.

Turns what happens into events and carries out instructions, one event at a time and in order. It decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

import uvicorn
import zmq
import zmq.asyncio

from ddp_bp.coordinator import events as e
from ddp_bp.coordinator.address import CoordinatorAddress, remove_address, write_address
from ddp_bp.coordinator.config import CoordinatorConfig
from ddp_bp.coordinator.disk import DiskWriter
from ddp_bp.coordinator.memory import MemoryFile, read_memory, recall
from ddp_bp.coordinator.scrapes import Scrapes
from ddp_bp.coordinator.sockets import bind_http, bind_router
from ddp_bp.coordinator.state import Coordinator
from ddp_bp.coordinator.web import make_app
from ddp_bp.errors import WireError
from ddp_bp.wire.codec import decode_from_worker, encode
from ddp_bp.wire.messages import StopCause, StopRequest
from ddp_bp.wire.process import kill_process

TICK_SECONDS: Final = 0.1
REMEMBER_SECONDS: Final = 2.0
LINGER_SECONDS: Final = 0.5
"""At the end, how long messages may still take to leave."""

_LOG: Final = logging.getLogger(__name__)


def run(config: CoordinatorConfig, ready: Callable[[CoordinatorAddress], None] | None = None) -> int:
    """Serves one job until it ends, and returns the exit code: 0 if it was trained to the end or stopped on request.

    `ready` is called once workers can connect, when `coordinator.json` is there.

    Raises AddressError for a port that cannot be used, InputError for a run directory in use, DdpError or OSError when
    the disk refuses.
    """
    return asyncio.run(serve(config, ready))


async def serve(config: CoordinatorConfig, ready: Callable[[CoordinatorAddress], None] | None = None) -> int:
    """As `run`, inside a running event loop. Signals are handled where that is the loop of the main thread."""
    context = zmq.asyncio.Context()
    try:
        with contextlib.closing(bind_http(config.http_host or config.host, config.http_port)) as http_socket:
            router, address = bind_router(context, config.host, config.port, http_socket, config.run_id)
            server = _Server(config, router, address)
            try:
                write_address(config.run_dir, address)
                if ready is not None:
                    ready(address)
                return await server.serve(http_socket)
            finally:
                server.close()
                remove_address(config.run_dir, os.getpid())
    finally:
        context.destroy(linger=round(LINGER_SECONDS * 1000))


class _HttpServer(uvicorn.Server):
    """uvicorn inside a process that handles signals itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Server:
    def __init__(self, config: CoordinatorConfig, router: zmq.asyncio.Socket, address: CoordinatorAddress) -> None:
        self._config = config
        self._router = router
        self._loop = asyncio.get_running_loop()
        self._disk = DiskWriter(config.run_dir, config.keep, config.keep_best, self._disk_answered)
        self._coordinator = Coordinator(config, self._disk.newest(), time.monotonic(), time.time(), address.address)
        memory = read_memory(config.run_dir) if config.takes_over or config.num_restarts or config.num_resizes else None
        if memory is not None:
            recall(self._coordinator, memory)
        self._memory = MemoryFile(config.run_dir)
        self._one_at_a_time = asyncio.Lock()
        self._exit_code: asyncio.Future[int] = self._loop.create_future()
        self._posted: set[asyncio.Task[None]] = set()
        self._told_to_end = asyncio.Event()
        self._scrapes = Scrapes()

    async def serve(self, http_socket: socket.socket) -> int:
        # That a process which counts from 0 is not taken for the one before it.
        await self._remember()
        app = make_app(self._coordinator, time.monotonic, lambda: self._disk.alive, self._remember, self._scrapes)
        http = _HttpServer(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=1,
            )
        )
        http_task = asyncio.create_task(http.serve(sockets=[http_socket]))
        others = [asyncio.create_task(self._receive()), asyncio.create_task(self._tick())]
        try:
            with self._watch_parent(), self._watch_signals():
                ends: set[asyncio.Future[Any]] = {self._exit_code, http_task, *others}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if self._exit_code.done():
                    await self._linger()
            # A task that ended before the job did has failed; its error is this process's.
            for task in (http_task, *others):
                if task.done():
                    task.result()
            # If the job is started again, with more or fewer ranks, the next one counts on from here.
            await self._remember()
            return self._exit_code.result()
        finally:
            for task in others:
                task.cancel()
            http.should_exit = True
            await asyncio.wait({http_task, *others}, timeout=5)

    async def _linger(self) -> None:
        """After the job's end, lets whoever asks by HTTP see it: until the time is over and, if the job ended for good,
        who reads the metrics has done so once more; or until somebody says to end."""
        ended_at = time.monotonic()
        self._scrapes.job_ended(ended_at)
        is_good = self._exit_code.exception() is None and self._exit_code.result() == 0
        is_shown = is_good and self._coordinator.ends_for_good
        while not self._told_to_end.is_set():
            now = time.monotonic()
            awaited_seconds = self._scrapes.awaited_seconds(now) if is_shown else 0.0
            seconds = max(ended_at + self._config.linger_seconds - now, awaited_seconds)
            if seconds <= 0:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told_to_end.wait(), min(seconds, TICK_SECONDS))

    def close(self) -> None:
        self._disk.close()

    async def _remember(self) -> None:
        await self._memory.keep(self._coordinator)

    # ---- events in

    async def _receive(self) -> None:
        while True:
            frames = await self._router.recv_multipart(copy=False)
            identity = frames[0].bytes
            try:
                message, payloads = decode_from_worker([frame.buffer for frame in frames[1:]])
            except WireError as error:
                await self._happened(e.Unreadable(identity, str(error)))
            else:
                await self._happened(e.Received(identity, message, payloads))
                # A parent hears of a stop as well, and the one that has ended the job may get here after it.
                if isinstance(message, StopRequest) and self._exit_code.done() and self._config.parent_fd is None:
                    self._told_to_end.set()
            # While messages keep coming nothing above really waits, and HTTP and the clock would not get their turn.
            await asyncio.sleep(0)

    async def _tick(self) -> None:
        remembered_at, remembering = time.monotonic(), None
        while True:
            await asyncio.sleep(TICK_SECONDS)
            await self._happened(e.Tick())
            if time.monotonic() - remembered_at >= REMEMBER_SECONDS and (remembering is None or remembering.done()):
                remembered_at = time.monotonic()
                # A disk that hangs must not stop the clock.
                remembering = self._follow(self._remember())

    def _disk_answered(self, event: e.DiskAnswer) -> None:
        self._loop.call_soon_threadsafe(self._post, event)

    def _post(self, event: e.Event) -> None:
        """Hands in an event from where one cannot wait."""
        self._follow(self._happened(event))

    def _follow(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Have something done meanwhile; an error of it ends the coordinator."""
        task = asyncio.create_task(work)
        self._posted.add(task)
        task.add_done_callback(self._posted_done)
        return task

    def _posted_done(self, task: asyncio.Task[None]) -> None:
        self._posted.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._exit_code.done():
            self._exit_code.set_exception(error)

    @contextlib.contextmanager
    def _watch_parent(self) -> Iterator[None]:
        parent_fd = self._config.parent_fd
        if parent_fd is None:
            yield
            return

        def readable() -> None:
            if not os.read(parent_fd, 4096):
                self._loop.remove_reader(parent_fd)
                self._told_to_end.set()
                self._post(e.ParentGone())

        self._loop.add_reader(parent_fd, readable)
        try:
            yield
        finally:
            self._loop.remove_reader(parent_fd)

    @contextlib.contextmanager
    def _watch_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def asked(cause: StopCause) -> None:
            # Ctrl-C reaches the whole foreground group; a parent turns it into a stop of the whole job by itself.
            if cause == "SIGTERM" or self._config.parent_fd is None:
                if self._exit_code.done():
                    self._told_to_end.set()
                self._post(e.TerminationAsked(cause))

        self._loop.add_signal_handler(signal.SIGTERM, asked, "SIGTERM")
        self._loop.add_signal_handler(signal.SIGINT, asked, "SIGINT")
        # A batch system may send it to every process of a job.
        self._loop.add_signal_handler(signal.SIGUSR1, asked, "SIGUSR1")
        try:
            yield
        finally:
            self._loop.remove_signal_handler(signal.SIGTERM)
            self._loop.remove_signal_handler(signal.SIGINT)
            self._loop.remove_signal_handler(signal.SIGUSR1)

    # ---- instructions out

    async def _happened(self, event: e.Event) -> None:
        async with self._one_at_a_time:
            events: deque[e.Event] = deque([event])
            while events:
                for instruction in self._coordinator.handle(events.popleft(), time.monotonic()):
                    events.extend(await self._carry_out(instruction))

    async def _carry_out(self, instruction: e.Instruction) -> list[e.Event]:
        """Carries out one instruction; what it brings about at once is returned."""
        match instruction:
            case e.Send(identity, message):
                try:
                    await self._router.send_multipart([identity, *encode(message)], zmq.NOBLOCK)
                except zmq.ZMQError:
                    # No such connection any more, or nobody has read from it for a thousand messages.
                    return [e.Disconnected(identity)]
            case e.Kill(rank, pid, process):
                return [e.Killed(rank, kill_process(pid, process))]
            case e.Remember():
                await self._remember()
            case e.Log(level, text):
                _LOG.log(logging.getLevelNamesMapping()[level.upper()], "%s", text)
            case e.Exit(code):
                if not self._exit_code.done():
                    self._exit_code.set_result(code)
            case _:
                self._disk.submit(instruction)
        return []
