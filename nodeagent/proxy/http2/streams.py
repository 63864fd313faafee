"""The HTTP/2 connections of one pool: streams, not connections, are what is free or not.

An exchange goes to a connection that takes one more; where none does it waits, and another
connection is dialled while that helps. What waits is bounded. A connection that its endpoint
leaves (GOAWAY), whose certificate was renewed, or whose server's has ended, takes no more exchanges
and closes behind its last one; others are dialled in its place. An endpoint that leaves every
connection before it has taken an exchange is not dialled on and on: after UNUSED of them what waits
goes elsewhere, or is refused; so it is where MOST_LEAVING would have to end before anything moves.
"""

from __future__ import annotations

import asyncio
import collections
from time import time
from typing import Final

from nodeagent.errors import STREAMS_EXHAUSTED, UPSTREAM_PROTOCOL, UPSTREAM_RESET, Reason
from nodeagent.proxy.context import Context
from nodeagent.proxy.dial import Dial, DialError
from nodeagent.proxy.http.exchange import Exchange
from nodeagent.proxy.http2.upstream import Http2Upstream, StreamKeeper

MOST_STREAMS: Final = 1024
"""On one connection, whatever its endpoint takes."""
EXPECTED: Final = 100
"""On one that has not said how many it takes (RFC 9113 section 6.5.2)."""
MOST_CONNECTIONS: Final = 64
"""That take exchanges, now or as soon as others on them have ended."""
MOST_LEAVING: Final = 256
"""That take none any more, and carry some still."""
WAITING: Final = 16384
"""Exchanges that wait for a stream at once."""
UNUSED: Final = 3
"""Connections in a row that ended before they took an exchange, of which others waited for one."""
ANYBODY: Final = 0


class _Group:
    """The connections that one client's connection, or anybody, may use."""

    def __init__(self) -> None:
        self.connections: list[Http2Upstream] = []
        self.waiting: collections.deque[Exchange] = collections.deque()
        self.dialling = 0
        self.unused = 0

    def young(self) -> int:
        """Return how many connections are on their way to take exchanges."""
        return self.dialling + len([each for each in self.connections if not each.session.settled])

    def taking(self) -> int:
        """Return how many connections take exchanges, if not now."""
        return len([each for each in self.connections if each.takes()])

    def refuse(self, reason: Reason) -> None:
        """Nothing that waits here will be served."""
        waiting = self.waiting
        self.waiting = collections.deque()
        for each in waiting:
            each.refuse(reason)

    def unreached(self, reason: Reason) -> None:
        """No connection could be made: nothing of what waits was sent."""
        waiting = self.waiting
        self.waiting = collections.deque()
        for each in waiting:
            each.unreached(reason)

    def free(self) -> Http2Upstream | None:
        """Return a connection that takes one more exchange."""
        for upstream in self.connections:
            if upstream.free():
                self.unused = 0
                return upstream
        return None


class StreamPool(StreamKeeper):
    """One pool's, of connections that may be many."""

    def __init__(self, context: Context, dial: Dial, pool: object, *, once: bool) -> None:
        """*pool*: whose they are; it lives as long as one of them. *once*: every connection carries one exchange."""
        self._context = context
        self._dial = dial
        self._pool = pool
        self._most = 1 if once else MOST_STREAMS
        self._once = once
        self._groups: dict[int, _Group] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._swept = context.now

    def send(self, exchange: Exchange) -> None:
        """Forward *exchange* on a stream as soon as one is free."""
        key = exchange.downstream.connection.number if self._dial.bound else ANYBODY
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group()
        upstream = None if group.waiting else group.free()
        if upstream is not None:
            upstream.ask(exchange)
            return
        if len(group.waiting) >= WAITING:
            group.waiting = collections.deque(each for each in group.waiting if not each.finished)
        if len(group.waiting) >= WAITING:
            exchange.refuse(STREAMS_EXHAUSTED)
            return
        if exchange.pending is None:
            exchange.pending = []
        group.waiting.append(exchange)
        self._dial_for(group)

    def retry(self, exchange: Exchange) -> None:
        self.send(exchange)

    def _dial_for(self, group: _Group) -> None:
        """Dial another connection where those that are dialled are too few for what waits."""
        expected = min(self._most, EXPECTED) * group.young()
        taking = group.taking() + group.dialling
        if len(group.waiting) <= expected or taking >= MOST_CONNECTIONS:
            return
        if len(group.connections) + group.dialling - taking >= MOST_LEAVING:
            if not taking:
                group.unreached(STREAMS_EXHAUSTED)
            return
        group.dialling += 1
        task = self._context.loop.create_task(self._connect(group, group.waiting[0]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, group: _Group, exchange: Exchange) -> None:
        """Dial a connection for *group*, of which *exchange* waits."""
        owner = exchange.downstream.connection
        tls = self._dial.contexts()
        try:
            dialled = await self._dial.connect(self._context, "http2")
        except DialError as error:
            group.dialling -= 1
            group.unreached(error.reason)
            return
        group.dialling -= 1
        upstream = Http2Upstream(self, owner, self._context, dialled.transport, self._most)
        upstream.tls = tls if tls is not None else self._dial.contexts()
        upstream.expires = dialled.expires
        dialled.transport.set_protocol(upstream)
        group.connections.append(upstream)
        if dialled.lost or dialled.ended:
            upstream.connection_lost(None)
            dialled.transport.abort()
            return
        if dialled.early:
            upstream.data_received(dialled.early)
            if not upstream.used and not upstream.free():
                self.forget(upstream)
                upstream.close()
                return
        self._serve(group)
        upstream.begin()

    def _serve(self, group: _Group) -> None:
        """Give what waits to streams that are free."""
        waiting = group.waiting
        while waiting:
            if waiting[0].finished:
                waiting.popleft()
                continue
            upstream = group.free()
            if upstream is None:
                self._dial_for(group)
                return
            upstream.ask(waiting.popleft())

    # -- what connections tell --

    def freed(self, upstream: Http2Upstream) -> None:
        group = self._group_of(upstream)
        if group is None:
            return
        if self._once and not upstream.streams and upstream.used:
            self.forget(upstream)
            upstream.close()
        if not upstream.used and not upstream.takes():
            self.forget(upstream)
            upstream.close()
        elif group.waiting:
            self._serve(group)

    def forget(self, upstream: Http2Upstream) -> None:
        group = self._group_of(upstream)
        if group is None or upstream not in group.connections:
            return
        group.connections.remove(upstream)
        if not upstream.session.settled:
            # so it would be with the next one: this is no server of HTTP/2
            group.refuse(UPSTREAM_RESET if upstream.session.broken is None else UPSTREAM_PROTOCOL)
        elif group.waiting:
            group.unused += not upstream.used
            if group.unused < UNUSED:
                self._serve(group)
            else:
                group.unused = 0
                group.unreached(UPSTREAM_RESET)

    def _group_of(self, upstream: Http2Upstream) -> _Group | None:
        return self._groups.get(upstream.owner.number if self._dial.bound else ANYBODY)

    # -- time --

    def sweep(self, now: float, idle: float) -> None:
        """Close what idled for *idle* seconds at *now* (monotonic), and what may not be used any more."""
        seconds = now - self._swept
        self._swept = now
        tls = self._dial.contexts()
        wall = time()
        for key, group in list(self._groups.items()):
            for upstream in list(group.connections):
                upstream.sweep(now, seconds)
                gone = self._dial.bound and upstream.owner.closed is not None
                if upstream.tls is not tls or gone or 0.0 < upstream.expires < wall:
                    upstream.closes = True
                done = not upstream.takes() or self._context.draining or now - upstream.idle_since > idle
                if done and not upstream.streams:
                    self.forget(upstream)
                    upstream.close()
            if group.waiting:
                self._serve(group)
            elif not group.connections and not group.dialling:
                del self._groups[key]
