"""What the connection of an HTTP/1 client makes a worker hold: bodies that wait for their endpoints, and
what was read and is not parsed yet. Counted with all that the connections of its pod hold
(``proxy/http2/held.py``), so that one that takes too much gives way.
"""

from __future__ import annotations

from collections.abc import Callable

from nodeagent.proxy.connection import Connection
from nodeagent.proxy.context import Context
from nodeagent.proxy.http2.held import STANDS_SECONDS, Backlog, Holder

_ITS_ONLY = 1
"""Of HTTP/1 a connection is one stream."""


class ClientBacklog(Holder):
    """The bytes of one connection."""

    def __init__(self, connection: Connection, context: Context, give_way: Callable[[], None]) -> None:
        """*give_way* lets go what is held, by ending something; it is called in a turn of its own."""
        self._connection = connection
        self._held = connection.pod.held
        self._context = context
        self._give_way = give_way
        self.bytes = 0
        self._grown = 0.0
        """When they were fewer last."""

    def count(self, size: int) -> None:
        """*size* bytes are held now."""
        before = self.bytes
        if size == before:
            return
        held = self._held
        self.bytes = size
        held.bytes += size - before
        if not before or size < before:
            self._grown = self._context.now
        most = self._context.limits.held_bytes_per_pod
        if not size:
            held.leave(self)
        elif not before:
            held.enter(self, most)
        if size > before and held.bytes > held.alarm:
            held.relieve(most)

    def party(self) -> str:
        peer = self._connection.peer
        return peer.identity or peer.address

    def backlogs(self) -> list[Backlog]:
        return [Backlog(self, _ITS_ONLY, self.bytes, stands=self._context.now - self._grown >= STANDS_SECONDS)]

    def give_up(self, stream: int) -> None:
        if self.bytes:
            self.count(0)
            self._context.loop.call_soon(self._give_way)
