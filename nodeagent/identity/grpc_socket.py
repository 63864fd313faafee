"""gRPC over connections of unix sockets that were accepted, and whose peer was looked at, before a byte was read.

A pod may send anything and as much as it likes, in the process that keeps all pods' keys: each connection has a budget of
bytes, a message a greatest size, and whatever the libraries make of nonsense ends that one connection, without a word in the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Final, Protocol

from grpclib import const, protocol, server
from grpclib.config import Configuration
from grpclib.exceptions import GRPCError

MAX_MESSAGE: Final = 64 << 10
"""Bytes of a request; a JWT-SVID to be validated is the largest."""
BURST_BYTES: Final = 1 << 20
BYTES_PER_SECOND: Final = 128 << 10
"""What a connection may send: thousands of requests at once, then some hundred a second."""
WINDOW: Final = (1 << 16) - 1
"""The smallest that HTTP/2 allows: what is not read yet is kept in memory."""


class Service(Protocol):
    """What grpclib calls a handler."""

    def __mapping__(self) -> Mapping[str, const.Handler]:
        """Return the methods by path."""


class Refused:
    """The same methods as *services*, none of which is allowed."""

    def __init__(self, services: Collection[Service], why: str) -> None:
        self._services, self._why = services, why

    def __mapping__(self) -> dict[str, const.Handler]:
        return {path: handler._replace(func=self._refuse) for service in self._services for path, handler in service.__mapping__().items()}

    async def _refuse(self, stream: Any) -> None:
        raise GRPCError(const.Status.PERMISSION_DENIED, self._why)


class GrpcSocket(server.Server):
    """Serves *services* on whatever connection is given to :meth:`protocol`; grpclib's own ways to listen are not used."""

    def __init__(self, services: Collection[Service]) -> None:
        # grpclib logs each fault of a client with its stack.
        for name in (server.__name__, protocol.__name__):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        super().__init__(services, config=Configuration(http2_connection_window_size=WINDOW, http2_stream_window_size=WINDOW))

    def protocol(self, ended: Callable[[], None]) -> asyncio.Protocol:
        """Return what serves one connection; *ended* is called when that is over."""
        handler = _Handler(self._mapping, self._codec, self._status_details_codec, self.__dispatch__)
        return _Connection(handler, self._config, self._h2_config, ended)


class _Buffer(protocol.Buffer):
    """A stream's bytes, of which no message takes too many."""

    async def read(self, size: int) -> bytes:
        if size > MAX_MESSAGE:
            raise GRPCError(const.Status.RESOURCE_EXHAUSTED, f"a message may have {MAX_MESSAGE} bytes")
        return await super().read(size)


class _Handler(server.Handler):
    def accept(self, stream: protocol.Stream, headers: list[tuple[str, str]], release_stream: Callable[[], Any]) -> None:
        assert stream.id is not None
        stream.buffer = _Buffer(partial(stream.connection.ack, stream.id))
        super().accept(stream, headers, release_stream)


class _Connection(protocol.H2Protocol):
    def __init__(self, handler: server.Handler, config: Configuration, h2_config: Any, ended: Callable[[], None]) -> None:
        super().__init__(handler, config, h2_config)
        self._ended = ended
        self._budget, self._at = float(BURST_BYTES), time.monotonic()
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self._budget = min(self._budget + (now - self._at) * BYTES_PER_SECOND, BURST_BYTES) - len(data)
        self._at = now
        if self._budget < 0:
            self._abort()
            return
        try:
            super().data_received(data)
        except Exception:  # noqa: BLE001 (the library checks little of what a peer sends; none of that may reach others)
            self._abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._ended()
        super().connection_lost(exc)

    def _abort(self) -> None:
        assert isinstance(self._transport, asyncio.Transport | asyncio.WriteTransport)
        self._transport.abort()
