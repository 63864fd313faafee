"""The server's side of a shared connection: each stream is accepted as a connection of the identity
that its TLS proved. Theory: ``link.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nodeagent.errors import HTTP2_BROKEN
from nodeagent.proxy.carriage import Carriage
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.context import Context
from nodeagent.proxy.http.fields import Field
from nodeagent.proxy.http2.sender import RESET_COST
from nodeagent.proxy.http2.stream import Http2Stream
from nodeagent.proxy.ledger import Ledger
from nodeagent.proxy.shared.heads import TAKEN, Carried, read_connect
from nodeagent.proxy.shared.link import Link
from nodeagent.proxy.shared.stream import SharedStream
from nodeagent.proxy.transport import reset

WARNED_SECONDS: Final = 1.0
"""How long the client's agent may take to answer a PING behind the first GOAWAY."""

Enter = Callable[[SharedStream, Carried], None]
"""Accepts what a stream carries."""


class SharedDownstream(Link):
    """The protocol of an accepted connection by which another agent sends streams."""

    def __init__(self, context: Context, ledger: Ledger, connection: Connection, enter: Enter) -> None:
        transport = connection.transport
        assert transport is not None, "its handshake is just over"
        Link.__init__(self, context, connection.pod.held, transport, client=False)
        self._ledger = ledger
        self._connection = connection
        self._enter = enter
        self._retiring = False
        self._warned = 0.0

    def begin(self) -> None:
        """Say what the client's agent may open."""
        connection = self._connection
        connection.protocol = "shared"
        connection.path = "proxy-mtls"
        connection.allowed()
        connection.carriage = SharedCarriage(self)
        if self.context.draining:
            self.drain()
        self.soon()

    # -- streams --

    def on_head(self, stream: Http2Stream, fields: list[Field]) -> None:
        if stream.head_read:
            return  # trailers, of which a tunnel has none: its end follows
        stream.head_read = True
        carried = read_connect(fields)
        if carried is None:
            self.session.malformed(stream)
            return
        self.session.send_head(stream, TAKEN, ended=False)
        shared = self.streams[stream.number] = SharedStream(self, stream, carried)
        self._enter(shared, carried)

    def on_data(self, stream: Http2Stream, piece: bytes) -> None:
        shared = self.streams.get(stream.number)
        if shared is not None:
            if not shared.used:
                shared.used = True
                self.session.earn(RESET_COST)  # who uses a connection may cut it; what is sent on it earns that too
            shared.came(piece)

    def emptied(self) -> None:
        if self._retiring and self.session.left():
            self.end()

    # -- the connection's end --

    def broke(self, words: str) -> None:
        self._connection.refused(HTTP2_BROKEN)
        self._ledger.count_refused(HTTP2_BROKEN)

    def connection_lost(self, error: Exception | None) -> None:
        Link.connection_lost(self, error)
        self._ledger.closed(self._connection)

    def drain(self) -> None:
        """Ask the client's agent to open streams elsewhere."""
        if not self._retiring:
            self._retiring = True
            self._warned = self.context.now
            self.session.warn()
            self.session.ping()
            self.soon()

    def sweep(self, now: float) -> None:
        """End what has had its time; *now* is monotonic."""
        self.age()
        session = self.session
        if self._retiring and not session.left() and (not session.pinged or now - self._warned > WARNED_SECONDS):
            session.leave()
            self.soon()
        if not self.idle():
            return
        if (self._retiring and session.left()) or now - self.touched > self.context.timeouts.idle:
            self.end()


class SharedCarriage(Carriage):
    """What those see of it who may end it."""

    requests = False
    http = False

    def __init__(self, link: SharedDownstream) -> None:
        self.link = link

    def drain(self) -> None:
        self.link.drain()

    def sweep(self, now: float) -> None:
        self.link.sweep(now)

    def reset(self) -> None:
        reset(self.link.transport)
