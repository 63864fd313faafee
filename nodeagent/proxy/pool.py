"""Upstream connections to one endpoint for one client: idle ones to use again, and how to make
another.

A pool belongs to (the pod whose network namespace dials, the identity it dials with, the endpoint),
so no request ever leaves under another workload's identity. Between two agents many of its
connections are streams of a shared one (``proxy/shared/``). Which version of HTTP an endpoint is
asked in, its port says, as in Istio: one that is declared http2 or grpc gets HTTP/2, one that is
declared http HTTP/1.1, and any other what the client speaks.
"""

from __future__ import annotations

import asyncio
from time import time
from typing import Final

from nodeagent.errors import UPSTREAM_PROTOCOL, UPSTREAM_RESET
from nodeagent.identity.tls import Contexts
from nodeagent.mesh.entries import HTTP2
from nodeagent.proxy.context import Context
from nodeagent.proxy.dial import Dial, DialError, Dialled
from nodeagent.proxy.http.exchange import Exchange, Upstream
from nodeagent.proxy.http1.upstream import Http1Upstream
from nodeagent.proxy.http2.streams import StreamPool
from nodeagent.proxy.shared.client import SharedPool
from nodeagent.proxy.shared.lease import Lease

LINGER_SECONDS: Final = 1.0
"""How long a server is waited for that is to close its connection."""
_LEAVING: Final = 256
"""Connections to one endpoint that are waited for at once: one that never closes shall not collect them."""


class Pool:
    """The connections to one endpoint: idle ones of HTTP/1, most recently used first, and those of
    HTTP/2, whose streams are free or not.
    """

    def __init__(self, context: Context, dial: Dial) -> None:
        self._context = context
        self._most = context.limits.idle_upstream_connections
        """How many idle ones are kept."""
        self.dial = dial
        self.once = self._most == 0
        """Every connection carries one request, none is kept."""
        self.streams = StreamPool(context, dial, self, once=self.once)
        self.shared = SharedPool(context, dial, self.retired)
        self._own: set[Upstream] = set()
        """Those of HTTP/1 that are no streams of a shared connection."""
        self._idle: list[Upstream] = []
        self._bound: dict[int, Upstream] = {}
        """Idle ones that wait for their client's connection's next request, by its number."""
        self._swept = 0.0
        """When, in Unix seconds."""
        self._leaving: set[Upstream] = set()
        self._dialling: set[asyncio.Task[None]] = set()

    def send(self, exchange: Exchange) -> None:
        """Forward *exchange* on a connection that is free for it, or on a new one as soon as it stands."""
        if self._multiplexes(exchange):
            self.streams.send(exchange)
            return
        idle = self._idle
        if idle:
            idle.pop().ask(exchange)
        elif self._bound and (own := self._bound.pop(exchange.downstream.connection.number, None)) is not None:
            own.ask(exchange)
        else:
            self.retry(exchange)

    def _multiplexes(self, exchange: Exchange) -> bool:
        """Say whether *exchange* goes on as HTTP/2; what asks to leave HTTP/1.1 cannot."""
        declared = self.dial.declared
        if declared == "http" or exchange.upgrade:
            return False
        return declared in HTTP2 or exchange.protocol == "HTTP/2"

    def retry(self, exchange: Exchange) -> None:
        """Forward *exchange* on a new connection."""
        if exchange.pending is None:
            exchange.pending = []
        task = self._context.loop.create_task(self._send_anew(exchange))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    async def _send_anew(self, exchange: Exchange) -> None:
        try:
            dialled = await self.shared.connect("http", accompanied=bool(self._own))
        except DialError as error:
            exchange.unreached(error.reason)
            return
        if dialled.lost:
            exchange.refuse(UPSTREAM_RESET)
            return
        upstream = Http1Upstream(self, exchange.downstream.connection, self._context.limits.header_bytes)
        upstream.stream = dialled.stream
        if dialled.stream is None:
            upstream.tls = self.dial.contexts()
            upstream.expires = dialled.expires
            self._own.add(upstream)
        upstream.attach(dialled.transport)
        dialled.transport.set_protocol(upstream)
        if dialled.early or dialled.ended:
            # Nothing was asked yet: what speaks now is no server of HTTP/1.1 (one of HTTP/2 may), what
            # leaves is none or one on its way out.
            dialled.transport.abort()
            exchange.refuse(UPSTREAM_PROTOCOL if dialled.early else UPSTREAM_RESET)
        elif exchange.finished:
            self.release(upstream)
        else:
            upstream.ask(exchange)

    def release(self, upstream: Upstream) -> None:
        """Take *upstream* back: its answer was complete. One that the server is to close is left to
        it for a while: who closes first keeps the port (TIME_WAIT, RFC 9293 section 3.6.1), and the
        client's pod has not many for one endpoint.
        """
        context = self._context
        upstream.idle_since = context.now
        if upstream.closes or self.once:
            if len(self._leaving) < _LEAVING:
                self._leaving.add(upstream)
            else:
                upstream.close()
        elif len(self._idle) >= self._most or context.draining or self._is_stale(upstream):
            upstream.close()
        elif self.dial.bound:
            self._bound[upstream.owner.number] = upstream  # the sweep closes it when its client has gone
        elif self._idle and upstream.stream is not None and self._idle[-1].stream is None:
            self._idle.insert(-1, upstream)  # who is alone again finds the connection that is nobody else's
        else:
            self._idle.append(upstream)

    def _is_stale(self, upstream: Upstream) -> bool:
        """Say whether no request shall be sent on *upstream* any more."""
        lease = _lease(upstream)
        if lease is not None:
            return lease.retired or self._has_ended(lease.tls, lease.expires)
        return self._has_ended(upstream.tls, upstream.expires)

    def _has_ended(self, tls: Contexts | None, expires: float) -> bool:
        """Say whether another certificate is shown now than with *tls*, or the server's has ended, at *expires*."""
        return tls is not self.dial.contexts() or 0.0 < expires < self._swept

    def forget(self, upstream: Upstream) -> None:
        """*upstream* is closed."""
        self._leaving.discard(upstream)
        self._own.discard(upstream)
        if upstream in self._idle:
            self._idle.remove(upstream)
        if self._bound.get(upstream.owner.number) is upstream:
            del self._bound[upstream.owner.number]

    async def connect(self) -> Dialled:
        """Return a connection to the endpoint for bytes that are no HTTP. Raises DialError."""
        return await self.shared.connect("tcp", accompanied=False)

    def retired(self, lease: Lease) -> None:
        """The shared connection of *lease* takes no new requests."""
        for upstream in [each for each in self._idle if _lease(each) is lease]:
            self.close(upstream)

    def idle(self) -> list[Upstream]:
        """Return the connections that wait for a request of whoever comes, the longest idle first."""
        return self._idle

    def sweep(self, now: float, idle: float) -> None:
        """Close what idled for *idle* seconds at *now* (monotonic), what the server should have closed, and all
        where the proxy drains, or the pod is gone that dialled: each keeps its network namespace.
        """
        if self.dial.pod.gone or self._context.draining:
            idle = -1.0
        # a certificate that was renewed is not shown until it ends: the server would cut the
        # connection
        self._swept = time()
        stale = [
            upstream
            for upstream in (*self._idle, *self._bound.values())
            if now - upstream.idle_since > idle or self._is_stale(upstream)
        ]
        stale += [upstream for upstream in self._bound.values() if upstream.owner.closed is not None]
        stale += [upstream for upstream in self._leaving if now - upstream.idle_since > LINGER_SECONDS]
        for upstream in stale:
            self.close(upstream)
        self.streams.sweep(now, idle)
        self.shared.sweep(now, idle)

    def close(self, upstream: Upstream) -> None:
        """Close *upstream*, which is idle."""
        self.forget(upstream)
        upstream.close()


def _lease(upstream: Upstream) -> Lease | None:
    """Return the lease by which *upstream* is carried now, None where it is no stream: one that its peer had
    not looked at may have gone over to another connection.
    """
    return upstream.stream.lease if upstream.stream is not None else None
