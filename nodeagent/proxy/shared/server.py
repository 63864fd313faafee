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
from nodeagent.proxy.http2.stream import Http2Stream
from nodeagent.proxy.ledger import Ledger
from nodeagent.proxy.shared.heads import TAKEN, Carried, read_connect
from nodeagent.proxy.shared.link import Link
from nodeagent.proxy.shared.stream import SharedStream
from nodeagent.proxy.transport import reset

WARNED_SECONDS: Final = 10.0
"""How long the client's agent may take to answer the PING behind a GOAWAY: what it opens before it has read
that would meet a closed connection, whose reset may overtake the GOAWAY.
"""

REFUSALS: Final = 16
"""So many streams a second may be refused by a limit of their pod, or since their client's certificate has
ended: each is counted and logged. Then no more are looked at, and what comes is opened elsewhere.
"""

Enter = Callable[[SharedStream, Carried], None]
"""Accepts what a stream carries."""


class SharedDownstream(Link):
    """The protocol of an accepted connection by which another agent sends streams."""

    def __init__(self, context: Context, ledger: Ledger, connection: Connection, enter: Enter) -> None:
        transport = connection.transport
        assert transport is not None, "its handshake is just over"
        Link.__init__(self, context, connection.pod.held, transport, client=False)
        context.outer += 1
        self._ledger = ledger
        self._connection = connection
        self._enter = enter
        self._retiring = False
        self._warned = 0.0
        self._refused = 0
        """Streams that were looked at and refused, within a second."""
        self._refused_since = context.now

    def begin(self) -> None:
        """Say what the client's agent may open."""
        connection = self._connection
        connection.protocol = "shared"
        connection.path = "proxy-mtls"
        connection.allowed()
        connection.carriage = SharedCarriage(self)
        if self._connection.pod.gone:
            self.depart()
        elif self.context.draining:
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
        if self._refuses():
            self.session.refuse(stream)
            return
        self.session.send_head(stream, TAKEN, ended=False)
        shared = self.streams[stream.number] = SharedStream(self, stream, carried, self.held)
        self._enter(shared, carried)
        if stream.number not in self.streams:
            self._refused += 1

    def _refuses(self) -> bool:
        """Say whether so many were refused in this second that no more are looked at."""
        now = self.context.now
        if now - self._refused_since >= 1.0:
            self._refused_since = now
            self._refused = 0
        return self._refused >= REFUSALS

    def emptied(self) -> None:
        if self._retiring and self.session.left() and self._heard():
            self.end()

    # -- the connection's end --

    def party(self) -> str:
        return self._connection.peer.identity

    def broke(self, words: str) -> None:
        self._connection.refused(HTTP2_BROKEN)
        self._ledger.count_refused(HTTP2_BROKEN)

    def connection_lost(self, error: Exception | None) -> None:
        Link.connection_lost(self, error)
        self.context.outer -= 1
        self._ledger.closed(self._connection)

    def drain(self) -> None:
        """Ask the client's agent to open streams elsewhere; those that are under way are taken."""
        if not self._retiring:
            self.session.warn()
            self._retire()

    def depart(self) -> None:
        """Take no stream any more: those that are under way go elsewhere."""
        if not self.session.left():
            self.session.leave()
            self._retire()

    def _retire(self) -> None:
        self._retiring = True
        self._warned = self.context.now
        self.ask()

    def _heard(self) -> bool:
        """Say whether the client's agent has read the last GOAWAY, or had its time."""
        return not self.session.pinged or self.context.now - self._warned > WARNED_SECONDS

    def sweep(self, now: float) -> None:
        """End what has had its time; *now* is monotonic."""
        self.age()
        if self._retiring and self._heard():
            self.session.leave()
            self.soon()
            if self.idle():
                self.end()
        elif self.idle() and now - self.idle_since > self.context.timeouts.idle:
            self.drain()


class SharedCarriage(Carriage):
    """What those see of it who may end it."""

    requests = False
    http = False
    outer = True

    def __init__(self, link: SharedDownstream) -> None:
        self.link = link

    def drain(self) -> None:
        self.link.drain()

    def depart(self) -> None:
        self.link.depart()

    def sweep(self, now: float) -> None:
        self.link.sweep(now)

    def reset(self) -> None:
        reset(self.link.transport)
