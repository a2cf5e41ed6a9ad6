"""The link to the coordinator: a background thread that owns the socket, so that no step waits for the network.

The training thread posts messages and polls for commands; both are queue operations. Losing the coordinator costs no
training step: messages wait in the queue, of reports only the newest. Whatever the training thread is doing, the other
one says that the rank is there, answers where its threads are, and ends the process if it is no part of the job any
more. Knows nothing of what the messages mean to the training loop.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import NoReturn, TypeVar

import zmq

from ddp_bp.errors import AddressError, DeadlineError, DistributedError, WireError
from ddp_bp.wire.codec import Buffer, decode_from_coordinator, encode
from ddp_bp.wire.messages import (
    End,
    Finished,
    FromCoordinator,
    FromWorker,
    Goodbye,
    Heartbeat,
    Hello,
    Introduce,
    KillProcess,
    LedgerRecords,
    Membership,
    Position,
    Refused,
    Report,
    Stacks,
    TellStacks,
    ThreadStack,
    Welcome,
)
from ddp_bp.wire.phases import WAITING
from ddp_bp.wire.process import kill_process

Outgoing = tuple[FromWorker, tuple[Buffer, ...]]
Reply = TypeVar("Reply")

# Messages handed to ZeroMQ that it has not sent yet. Of pieces of checkpoints it makes copies, whose memory stays with
# the process.
_SEND_HIGH_WATER_MARK = 1
_MAX_QUEUED_REPORTS = 8
# The coordinator sends a heartbeat every second.
_HELLO_AGAIN_SECONDS = 5.0

_INTRODUCED_SECONDS = 1.0
_SENT_AGAIN = (LedgerRecords, Finished)
_HEARTBEAT: Outgoing = Heartbeat(), ()

EVICTED_EXIT_CODE = 79
"""Of a rank that was told that it is no part of the job any more."""


class CoordinatorLink:
    """One rank's connection. The public methods belong to the training thread."""

    def __init__(
        self, address: str, hello: Hello, heartbeat_seconds: float = 0.5, orphan_seconds: float = math.inf
    ) -> None:
        """`address`: the coordinator's "tcp://host:port".

        `orphan_seconds`: how long this rank may wait for others while nothing is heard of the coordinator.
        """
        self._heartbeat_seconds, self._orphan_seconds = heartbeat_seconds, orphan_seconds
        self._position: Callable[[], Position | None] = lambda: None
        self._stacks: Callable[[], list[ThreadStack]] = list
        self._welcomed = self._is_returning = self._is_back = False
        self._on_return: list[Callable[[], None]] = []
        self._address, self._hello = address, hello
        self._introduction: list[Outgoing] = [(hello, ())]
        self._rank = hello.rank
        self._outbox: deque[Iterable[Outgoing]] = deque()
        self._inbox: deque[FromCoordinator] = deque()
        self._stream: Iterator[Outgoing] = iter(())
        self._introduced = 0.0
        self._answers: deque[Outgoing] = deque()
        self._changed = threading.Condition()
        # An eventfd while the thread runs. Its number may be another file's afterwards.
        self._wake = -1
        self._closing = False
        self._last_heard = monotonic()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="coordinator link", daemon=True)

    def open(self, deadline_seconds: float) -> Welcome:
        """Connect and introduce this rank.

        Raises:
            AddressError: the address is none.
            DistributedError: the coordinator refuses this rank, and says why.
            DeadlineError: it did not answer in time.
        """
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread.start()
        self.post(self._hello)

        def welcome(message: FromCoordinator) -> Welcome | None:
            if isinstance(message, Refused):
                raise DistributedError(f"rank {self._hello.rank}: the coordinator refused it: {message.reason}")
            return message if isinstance(message, Welcome) else None

        return self.wait(welcome, deadline_seconds, "its welcome")

    def watch(self, position: Callable[[], Position], stacks: Callable[[], list[ThreadStack]]) -> None:
        """From now on tell the coordinator what the training thread is doing, and when asked where all threads are.

        Both are called by the background thread.
        """
        self._position, self._stacks = position, stacks

    def on_return(self, send_again: Callable[[], None]) -> None:
        """Have `send_again` called whenever the coordinator has welcomed this rank anew, after a lost connection or
        because it is another process. That happens within `take` or `wait`, when everything else that has arrived has
        been taken. Lines of the ledger, streams and the summary that are posted in between are left to it, so that
        they arrive in their order."""
        self._on_return.append(send_again)

    def post(self, message: FromWorker) -> None:
        """Queue one message."""
        with self._changed:
            if self._is_returning and isinstance(message, _SENT_AGAIN):
                return
            if isinstance(message, Report):
                self._drop_stale_reports()
            self._outbox.append([(message, ())])
        self._notify_thread()

    def announce(self, membership: Membership) -> None:
        """Queue the membership in which this rank goes on; a coordinator that it must introduce itself to again will
        be told as well."""
        with self._changed:
            self._introduction = [(self._hello, ()), (membership, ())]
            self._rank = membership.rank
        self.post(membership)

    def post_stream(self, messages: Iterable[Outgoing]) -> None:
        """Queue messages with payloads that are made while they are sent. Payloads must not change until then."""
        with self._changed:
            if self._is_returning:
                return
            self._outbox.append(messages)
        self._notify_thread()

    def take(self) -> list[FromCoordinator]:
        """The commands and replies that have arrived since the last call."""
        if not self._inbox and not self._is_back:
            return []
        with self._changed:
            messages = list(self._inbox)
            self._inbox.clear()
            if not messages:
                self._send_again()
        return messages

    def wait(
        self,
        select: Callable[[FromCoordinator], Reply | None],
        silence_seconds: float,
        what: str,
        limit_seconds: float = math.inf,
    ) -> Reply:
        """Wait for the first message that `select` maps to something, and return that; other messages stay queued.

        Raises:
            DeadlineError: the coordinator was silent, heartbeats included, for `silence_seconds`, or it was there and
                has not answered for `limit_seconds`.
        """
        began = monotonic()
        with self._changed:
            while True:
                for index, message in enumerate(self._inbox):
                    if (selected := select(message)) is not None:
                        del self._inbox[index]
                        return selected
                if self._failure is not None:
                    raise self._failure
                self._send_again()
                remaining = max(began, self._last_heard) + silence_seconds - monotonic()
                if remaining <= 0:
                    raise DeadlineError(
                        f"rank {self._hello.rank}: waited for {what} from the coordinator at {self._address}, "
                        f"which was silent for {silence_seconds:g} s; is it running and reachable from here?"
                    )
                if (left := began + limit_seconds - monotonic()) <= 0:
                    raise DeadlineError(
                        f"rank {self._hello.rank}: waited {limit_seconds:g} s for {what} from the coordinator at "
                        f"{self._address}, which is there; does the disk of the run directory answer?"
                    )
                self._changed.wait(min(remaining, left))

    def close(self, flush_seconds: float = 5.0) -> None:
        """Say goodbye, send what is queued for at most `flush_seconds`, and end the thread."""
        if not self._thread.is_alive():
            return
        self.post(Goodbye(self._rank))
        with self._changed:
            self._closing = True
        self._notify_thread()
        self._thread.join(flush_seconds)

    def _send_again(self) -> None:
        if self._is_back:
            self._is_back = self._is_returning = False
            for send_again in self._on_return:
                send_again()

    def _drop_stale_reports(self) -> None:
        # Reports wait only while the coordinator is away; then the newest ones say what matters.
        reports = [item for item in self._outbox if isinstance(item, list) and isinstance(item[0][0], Report)]
        for item in reports[: max(0, len(reports) - _MAX_QUEUED_REPORTS + 1)]:
            self._outbox.remove(item)

    def _notify_thread(self) -> None:
        with self._changed:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    # From here on: the background thread.

    def _run(self) -> None:
        context = zmq.Context()
        try:
            with context.socket(zmq.DEALER) as socket:
                socket.setsockopt(zmq.SNDHWM, _SEND_HIGH_WATER_MARK)
                socket.setsockopt(zmq.LINGER, 2000)
                socket.setsockopt(zmq.IPV6, int("[" in self._address))
                self._connect(socket)
                self._serve(socket)
        except Exception as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()
        finally:
            context.term()
            with self._changed:
                os.close(self._wake)
                self._wake = -1

    def _connect(self, socket: zmq.Socket[bytes]) -> None:
        try:
            socket.connect(self._address)
        except zmq.ZMQError as error:
            raise AddressError(
                f"rank {self._hello.rank}: {self._address!r} is no address of a coordinator: {error}; "
                "expected tcp://HOST:PORT"
            ) from error

    def _serve(self, socket: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(self._wake, zmq.POLLIN)
        outgoing: Outgoing | None = None
        beat = self._introduced = monotonic()
        is_due = False
        while True:
            now = monotonic()
            if now - max(self._last_heard, self._introduced) > _HELLO_AGAIN_SECONDS:
                # After a lost connection the coordinator sees a stranger, who must introduce itself.
                self._introduce()
            # Read before the queue is: what was posted before `close` is then still found in it.
            closing = self._closing
            if now - beat >= self._heartbeat_seconds:
                beat, is_due = now, self._welcomed
                self._end_if_orphan(now)
            if outgoing is None and not closing:
                # However long a step takes, and whatever waits to be sent, the coordinator knows how this rank is.
                if is_due:
                    outgoing, is_due = _HEARTBEAT, False
                elif self._answers:
                    outgoing = self._answers.popleft()
            outgoing = outgoing or self._next_outgoing()
            if outgoing is None and closing:
                return
            poller.register(socket, zmq.POLLIN | (zmq.POLLOUT if outgoing else 0))
            events = dict(poller.poll(max(10, round(1000 * (beat + self._heartbeat_seconds - now)))))
            if self._wake in events:
                os.eventfd_read(self._wake)
            state = events.get(socket, 0)
            if state & zmq.POLLIN:
                self._receive(socket)
            if outgoing and state & zmq.POLLOUT:
                message, payloads = outgoing
                if outgoing is _HEARTBEAT:
                    # It may have waited for long.
                    message = Heartbeat(self._position())
                socket.send_multipart(encode(message, payloads))
                outgoing = None

    def _introduce(self) -> None:
        """Say who this is, before anything else. Streams begin anew when the coordinator has said its welcome."""
        self._introduced = monotonic()
        with self._changed:
            self._is_returning = self._welcomed
            if self._is_returning:
                self._stream = iter(())
                self._outbox = deque(item for item in self._outbox if not _is_sent_again(item))
            self._outbox.appendleft(list(self._introduction))

    def _end_if_orphan(self, now: float) -> None:
        if now - self._last_heard <= self._orphan_seconds:
            return
        position = self._position()
        if position is not None and position.phase == WAITING and position.seconds > self._orphan_seconds:
            self._end(
                f"for {self._orphan_seconds:g} s it has waited for other ranks, and heard nothing of the coordinator"
            )

    def _end(self, reason: str) -> NoReturn:
        # The other end of a pipe may be where nobody reads any more.
        with contextlib.suppress(OSError):
            print(f"ddp-bp: rank {self._hello.rank} ends: {reason}", file=sys.stderr, flush=True)
        # The training thread may be anywhere, and MPI would wait for others.
        os._exit(EVICTED_EXIT_CODE)

    def _next_outgoing(self) -> Outgoing | None:
        """The next message of the stream that is being sent, or the first of the next one in the queue."""
        while True:
            if (outgoing := next(self._stream, None)) is not None:
                return outgoing
            with self._changed:
                if not self._outbox:
                    return None
                self._stream = iter(self._outbox.popleft())

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        frames = socket.recv_multipart()
        with self._changed:
            self._last_heard = monotonic()
            try:
                message, _ = decode_from_coordinator(frames)
            except WireError as error:
                self._failure = error
            else:
                self._take_in(message)
            self._changed.notify_all()

    def _take_in(self, message: FromCoordinator) -> None:
        match message:
            case Heartbeat():
                pass
            case Introduce():
                # Several heartbeats may have been a stranger's before the answer to the first one is here.
                if self._welcomed and monotonic() - self._introduced > _INTRODUCED_SECONDS:
                    self._introduce()
            case Welcome() if self._welcomed:
                self._is_back = True
            case TellStacks(request_id):
                self._answers.append((Stacks(request_id, self._stacks()), ()))
            case End(reason):
                self._end(reason)
            case KillProcess(pid, process):
                kill_process(pid, process)
            case Refused(reason) if self._welcomed and not self._closing:
                # The job has gone on without this rank, or another one is at the address by now.
                self._end(reason)
            case _:
                self._welcomed |= isinstance(message, Welcome)
                self._inbox.append(message)


def _is_sent_again(item: Iterable[Outgoing]) -> bool:
    """Whether what waits in the outbox is left to those who were asked to send again."""
    return not isinstance(item, list) or isinstance(item[0][0], _SENT_AGAIN)
