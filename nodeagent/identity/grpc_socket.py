"""gRPC over connections of unix sockets that were accepted, and whose peer was looked at, before a
byte was read.

A pod may send anything and as much as it likes, in the process that keeps all pods' keys: each
connection has a budget of bytes, all of one socket have one of HTTP/2 frames (nine bytes that cost
as much as a thousand) and of calls that go on, a message has a greatest size, what is worked off a
turn of the loop is little, and whatever the libraries make of nonsense ends that one connection,
without a word in the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Final, Protocol, cast

from grpclib import const, protocol, server
from grpclib.config import Configuration
from grpclib.exceptions import GRPCError
from h2.config import H2Configuration
from h2.errors import ErrorCodes

from nodeagent.identity.allowance import Allowance

MAX_MESSAGE: Final = 64 << 10
"""Bytes of a request; a JWT-SVID to be validated is the largest."""
BURST_BYTES: Final = 1 << 20
BYTES_PER_SECOND: Final = 128 << 10
"""What a connection may send: thousands of requests at once, then some hundred a second."""
BURST_FRAMES: Final = 4000
FRAMES_PER_SECOND: Final = 400
"""What all connections of a socket may send; a call is half a dozen."""
MAX_CALLS: Final = 64
"""That go on at the same time, of all connections of a socket: one that waits costs 24 KB, and what it asked for.
An Envoy has two, an application one or two; what is more is refused, as a call that was not begun.
"""
CONNECTION_FRAMES: Final = 10
"""What a new connection costs, in frames."""
PORTION: Final = 2048
"""Bytes that are worked off before the loop turns."""
PREFACE_BYTES: Final = 24
"""With what a client begins (RFC 9113 section 3.4)."""
HEADER_BYTES: Final = 9
WINDOW: Final = (1 << 16) - 1
"""The smallest that HTTP/2 allows: what is not read yet is kept in memory."""


class GrpcService(Protocol):
    """What grpclib calls a handler."""

    def __mapping__(self) -> Mapping[str, const.Handler]:
        """Return the methods by path."""


class RefusedServices:
    """The same methods as *services*, none of which is allowed."""

    def __init__(self, services: Collection[GrpcService], why: str) -> None:
        self._services = services
        self._why = why

    def __mapping__(self) -> dict[str, const.Handler]:
        handlers: dict[str, const.Handler] = {}
        for service in self._services:
            for path, handler in service.__mapping__().items():
                handlers[path] = handler._replace(func=self._refuse)
        return handlers

    async def _refuse(self, stream: object) -> None:
        raise GRPCError(const.Status.PERMISSION_DENIED, self._why)


class GrpcSocket(server.Server):
    """Serves *services* on whatever connection is given to :meth:`protocol`; grpclib's own ways to
    listen are not used.
    """

    def __init__(self, services: Collection[GrpcService]) -> None:
        # grpclib logs each fault of a client with its stack.
        for name in (server.__name__, protocol.__name__):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self._frames = Allowance(BURST_FRAMES, FRAMES_PER_SECOND)
        self.calls: set[asyncio.Task[None]] = set()
        """That go on, of all connections."""
        super().__init__(
            services, config=Configuration(http2_connection_window_size=WINDOW, http2_stream_window_size=WINDOW)
        )

    def protocol(self, ended: Callable[[], None]) -> asyncio.Protocol:
        """Return what serves one connection; *ended* is called when that is over."""
        handler = _Handler(self._mapping, self._codec, self._status_details_codec, self.__dispatch__)
        handler.calls = self.calls
        return _Connection(handler, self._config, self._h2_config, ended, self._frames)


class _Buffer(protocol.Buffer):
    """A stream's bytes, of which no message takes too many."""

    async def read(self, size: int) -> bytes:
        if size > MAX_MESSAGE:
            raise GRPCError(const.Status.RESOURCE_EXHAUSTED, f"a message may have {MAX_MESSAGE} bytes")
        return await super().read(size)


class _Handler(server.Handler):
    calls: set[asyncio.Task[None]]
    """Of all connections of the socket."""

    def accept(
        self, stream: protocol.Stream, headers: list[tuple[str, str]], release_stream: Callable[[], object]
    ) -> None:
        assert stream.id is not None
        if len(self.calls) >= MAX_CALLS:
            stream.reset_nowait(ErrorCodes.REFUSED_STREAM)  # RFC 9113 section 8.7: it may be tried again
            release_stream()
            return
        stream.buffer = _Buffer(partial(stream.connection.ack, stream.id))
        super().accept(stream, headers, release_stream)
        call = self._tasks[stream]
        self.calls.add(call)
        call.add_done_callback(self.calls.discard)


class _Connection(protocol.H2Protocol):
    def __init__(
        self,
        handler: server.Handler,
        config: Configuration,
        h2_config: H2Configuration,
        ended: Callable[[], None],
        frames: Allowance,
    ) -> None:
        super().__init__(handler, config, h2_config)
        self._ended = ended
        self._frames = frames
        self._bytes = Allowance(BURST_BYTES, BYTES_PER_SECOND)
        self._counted = FrameCount()
        self._late = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        super().connection_made(transport)
        if not self._frames.take(CONNECTION_FRAMES):
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        if not self._bytes.take(len(data)) or not self._frames.take(self._counted.of(data)):
            self._transport.abort()
            return
        waiting, self._late = bool(self._late), self._late + data
        if not waiting:
            self._work()

    def _work(self) -> None:
        """Work off a portion of what came, and the rest in the loop's next turns."""
        if self._transport.is_closing():
            return
        portion, self._late = self._late[:PORTION], self._late[PORTION:]
        try:
            super().data_received(portion)
        except Exception:  # noqa: BLE001 (the library checks little of what a peer sends; none of that may reach others)
            self._transport.abort()
            return
        if self._late:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._work)
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._ended()
        super().connection_lost(exc)


class FrameCount:
    """Counts the frames that begin in a client's stream, by their lengths alone (RFC 9113 section 4.1)."""

    def __init__(self) -> None:
        self._skip = PREFACE_BYTES
        self._head = b""

    def of(self, data: bytes) -> int:
        """Return how many begin in *data*, the next of what came."""
        data = self._head + data
        at = 0
        count = 0
        self._head = b""
        while len(data) - at > self._skip:
            at += self._skip
            self._skip = 0
            head = data[at : at + HEADER_BYTES]
            if len(head) < HEADER_BYTES:
                self._head = head
                return count
            self._skip = HEADER_BYTES + int.from_bytes(head[:3])
            count += 1
        self._skip -= len(data) - at
        return count
