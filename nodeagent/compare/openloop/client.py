"""The sockets of a run: one thread, one epoll, a timerfd that ticks when requests are due.

A request takes the connection that has been free longest; while all are busy it waits, in order. A
connection that is not open is opened by the request that takes it, within that request's time. An
answer must be framed by Content-Length or chunks: one that ends with its connection cannot be told
from one that was cut, and counts as an error.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from nodeagent.compare.openloop.flow import NANOSECONDS, Schedule
from nodeagent.compare.openloop.target import HttpTarget
from nodeagent.errors import NodeagentError

_RECEIVE: Final = 1 << 16
_LOOK_NS: Final = 50_000_000
"""How often the client looks for requests that have waited too long."""
GRACE_SECONDS: Final = 1.0
"""How long after its last request was due a run still sends what is overdue."""
_TFD_NONBLOCK: Final = os.O_NONBLOCK
_TFD_CLOEXEC: Final = os.O_CLOEXEC
_TFD_TIMER_ABSTIME: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)
Clock = Callable[[], int]


class OpenLoopError(NodeagentError):
    """No load could be put on the target: it cannot be connected to, or the kernel refused a timer."""


class _LoadConnection:
    """A connection and the request on it; also what httptools calls back. Reused after its socket was closed."""

    __slots__ = ("connecting", "keep", "parser", "request", "sent_at", "socket", "status", "surplus", "unsent")

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.parser: HttpResponseParser | None = None
        """Of the open socket."""
        self.connecting = False
        self.request = -1
        """The number of the request that waits for its answer, -1 without one."""
        self.sent_at = 0
        self.unsent = b""
        self.status = 0
        """Of the complete final answer."""
        self.keep = True
        self.surplus = False
        """More was received than one answer."""

    def on_message_begin(self) -> None:
        self.surplus = self.status != 0

    def on_message_complete(self) -> None:
        assert self.parser is not None
        status: int = self.parser.get_status_code()
        if status >= 200:  # before that: interim answers (RFC 9110, 15.2)
            self.status = status
            self.keep = self.parser.should_keep_alive()


class OpenLoopClient:
    """Sends the requests of a schedule to *target* over so many *connections*, each of which a request
    may hold for *timeout* seconds. Use :func:`run`.
    """

    def __init__(self, target: HttpTarget, connections: int, timeout: float, clock: Clock = time.monotonic_ns) -> None:
        self._target = target
        self._timeout = int(timeout * NANOSECONDS)
        self._clock = clock
        self._epoll = select.epoll()
        self._connections = [_LoadConnection() for _ in range(connections)]
        self._by_descriptor: dict[int, _LoadConnection] = {}
        self._free = deque(self._connections)
        self._flow: Schedule

    def connect(self) -> None:
        """Open all connections before the first request is due. Raises OpenLoopError when one does
        not open within the timeout.
        """
        deadline = self._clock() + self._timeout
        for connection in self._connections:
            self._open(connection)
        while waiting := [each for each in self._connections if each.connecting]:
            if self._clock() > deadline:
                raise OpenLoopError(
                    f"connect to {self._target.shown}: {len(waiting)} of {len(self._connections)} connections: no "
                    "answer in time"
                )
            for descriptor, _ in self._epoll.poll(0.05):
                if reason := self._connected(self._by_descriptor[descriptor]):
                    raise OpenLoopError(
                        f"connect to {self._target.shown}: {reason}: is the server running, and does a policy let "
                        "this client in?"
                    )

    def drive(self, flow: Schedule) -> None:
        """Send the requests of *flow* when they are due; return when all that were sent are answered or given up."""
        self._flow = flow
        end = flow.due(flow.total) + int(GRACE_SECONDS * NANOSECONDS)
        timer = _ticker(flow.begin, flow.rate)
        try:
            self._epoll.register(timer, select.EPOLLIN)
            self._loop(flow, timer, end)
        finally:
            os.close(timer)

    def _loop(self, flow: Schedule, timer: int, end: int) -> None:
        # Looked up once: this loop must not be what limits the load.
        poll = self._epoll.poll
        clock = self._clock
        free = self._free
        by_descriptor = self._by_descriptor
        take = flow.take
        look = 0
        while True:
            for descriptor, events in poll():
                if descriptor == timer:
                    os.read(timer, 8)  # which also starts it again
                elif (connection := by_descriptor.get(descriptor)) is not None:
                    self._ready(connection, events)
            now = clock()
            while free and now <= end and (number := take(now)) >= 0:
                self._send(free.popleft(), number, now)
            if now >= look:
                look = now + _LOOK_NS
                self._expire(now)
            if (flow.sent == flow.total or now > end) and len(free) == len(self._connections):
                return

    def close(self) -> None:
        """Close every connection and the epoll descriptor."""
        for connection in self._connections:
            self._shut(connection)
        self._epoll.close()

    def _open(self, connection: _LoadConnection) -> None:
        opened = socket.socket(self._target.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        connection.socket = opened
        connection.connecting = True
        connection.parser = HttpResponseParser(connection)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._by_descriptor[opened.fileno()] = connection
        opened.connect_ex(self._target.address)  # its outcome is told by epoll and SO_ERROR
        self._epoll.register(opened, select.EPOLLOUT)

    def _shut(self, connection: _LoadConnection) -> None:
        if connection.socket is not None:
            self._by_descriptor.pop(connection.socket.fileno(), None)
            connection.socket.close()
            connection.socket = connection.parser = None
            connection.connecting = False
            connection.unsent = b""

    def _connected(self, connection: _LoadConnection) -> str:
        """Take note that a connect has ended; return why it failed, or nothing."""
        assert connection.socket is not None
        if number := connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return os.strerror(number)
        connection.connecting = False
        self._epoll.modify(connection.socket, select.EPOLLIN)
        return ""

    def _send(self, connection: _LoadConnection, number: int, now: int) -> None:
        connection.request = number
        connection.sent_at = now
        connection.status = 0
        if connection.socket is None:
            connection.unsent = self._target.request
            try:
                self._open(connection)
            except OSError as error:  # descriptors or ports have run out
                self._fail(connection, f"connect: {error.strerror}")
            return
        self._write(connection, self._target.request)

    def _write(self, connection: _LoadConnection, data: bytes) -> None:
        assert connection.socket is not None
        try:
            sent = connection.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._fail(connection, _cut(error))
            return
        if sent < len(data):
            self._epoll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)
        elif connection.unsent:
            self._epoll.modify(connection.socket, select.EPOLLIN)
        connection.unsent = data[sent:]

    def _ready(self, connection: _LoadConnection, events: int) -> None:
        if connection.connecting:
            if reason := self._connected(connection):
                self._fail(connection, f"connect: {reason}")
            elif connection.unsent:
                self._write(connection, connection.unsent)
            return
        if events & select.EPOLLOUT and connection.unsent:
            self._write(connection, connection.unsent)
        if events & ~select.EPOLLOUT and connection.socket is not None:
            self._read(connection)

    def _read(self, connection: _LoadConnection) -> None:
        assert connection.socket is not None
        assert connection.parser is not None
        try:
            data = connection.socket.recv(_RECEIVE)
            if not data:
                self._fail(connection, "cut")
                return
            connection.parser.feed_data(data)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(connection, _cut(error))
            return
        except (HttpParserError, HttpParserUpgrade):
            self._fail(connection, "not HTTP")
            return
        if connection.status:
            self._answered(connection)

    def _answered(self, connection: _LoadConnection) -> None:
        """Count a complete answer and free the connection."""
        if connection.request < 0 or connection.surplus or connection.unsent:
            self._fail(connection, "more answers than requests")
            return
        if 200 <= connection.status < 300:
            self._flow.answered(connection.request, self._clock())
        else:
            self._flow.failed(connection.request, f"status {connection.status}")
        connection.request = -1
        connection.status = 0
        if not connection.keep:
            self._shut(connection)
        self._free.append(connection)

    def _fail(self, connection: _LoadConnection, cause: str) -> None:
        """Close the connection and count its request, if it has one, as failed."""
        self._shut(connection)
        if connection.request >= 0:
            self._flow.failed(connection.request, cause)
            connection.request = -1
            self._free.append(connection)

    def _expire(self, now: int) -> None:
        for connection in self._connections:
            if connection.request >= 0 and now - connection.sent_at > self._timeout:
                self._fail(connection, "timeout")


def _cut(error: OSError) -> str:
    return "cut" if error.errno in (errno.ECONNRESET, errno.EPIPE) else error.strerror or str(error)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def _ticker(begin: int, rate: float) -> int:
    """Return a timerfd that ticks from *begin* on with every request, and between them where the
    client must look around anyway.

    epoll's own timeout counts milliseconds, too coarse for a schedule (timerfd_create(2)).
    """
    interval = NANOSECONDS / rate
    interval = max(1, int(interval / (1 + interval // _LOOK_NS)))
    descriptor: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
    if descriptor < 0:
        raise OpenLoopError(f"timerfd_create: {os.strerror(ctypes.get_errno())}")
    spec = _Itimerspec(_Timespec(*divmod(interval, NANOSECONDS)), _Timespec(*divmod(max(1, begin), NANOSECONDS)))
    if _libc.timerfd_settime(descriptor, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None):
        number = ctypes.get_errno()
        os.close(descriptor)
        raise OpenLoopError(f"timerfd_settime: {os.strerror(number)}")
    return descriptor


def run(
    target: HttpTarget, rate: float, connections: int, seconds: float, warmup: float = 0.0, timeout: float = 5.0
) -> dict[str, object]:
    """Put *rate* requests/s over *connections* connections on *target* for *warmup* + *seconds*
    seconds and return :meth:`Flow.result`.

    Beside that ``cpu_seconds``: what this process used, by which one sees whether the client itself
    was the limit. Raises OpenLoopError.
    """
    client = OpenLoopClient(target, connections, timeout)
    before = time.process_time()
    collects = gc.isenabled()
    try:
        client.connect()
        gc.disable()  # a collection would stand between a request and its time
        flow = Schedule(time.monotonic_ns() + NANOSECONDS // 100, rate, seconds, warmup)
        client.drive(flow)
    except OSError as error:
        raise OpenLoopError(f"{target.shown}: {error.strerror or error}") from None
    finally:
        client.close()
        if collects:
            gc.enable()
    used = time.process_time() - before
    return {**flow.result(), "cpu_seconds": round(used, 6)}
